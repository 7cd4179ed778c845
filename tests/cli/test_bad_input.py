"""Wrong input through the command line: one clear line on stderr, the documented exit code, nothing half-written."""

from __future__ import annotations

import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llmops.serving.lock import serve_lock
from llmops.settings import find_workspace
from tests.loop import DATA, GATE, PROFILE, RECIPE, SUITE, Done, Loop
from tests.tiny import build_tiny_model

TINY = {"r": 8, "alpha": 16, "learning_rate": "1e-2", "tracking": "none", "n_steps": 4, "seed": 0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base that all workspaces of this module use."""
    return build_tiny_model(tmp_path_factory.mktemp("bad") / "base")


@pytest.fixture
def loop(tmp_path: Path, shared: Path) -> Loop:
    (tmp_path / "cache").mkdir()
    loop = Loop(tmp_path, tmp_path / "cache")
    (tmp_path / "llmops.yaml").write_text("name: bad\n")
    loop.write("data.yaml", DATA)
    loop.write("recipe.yaml", RECIPE, base=shared, **TINY)
    loop.write("serve.yaml", PROFILE, base=shared)
    loop.write("suite.yaml", SUITE, n_cases=24)
    loop.write("gate.yaml", GATE, kind="superior", bound="by: 0")
    return loop


def _one_line(done: Done, code: int, *patterns: str) -> str:
    """The error's one line, after checking code and content."""
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert (done.code, len(lines)) == (code, 1), done.err
    assert "Traceback" not in done.err
    for pattern in patterns:
        assert re.search(pattern, lines[0]), lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("file", "old", "new", "command", "hint"),
    [
        (
            "recipe.yaml",
            "lora: {r:",
            "lora: {rnk:",
            ("finetune",),
            r"lora\.rnk is not a setting; did you mean lora\.r\?",
        ),
        (
            "data.yaml",
            "licence:",
            "license:",
            ("data", "build"),
            "license is not a setting; did you mean licence",
        ),
        ("serve.yaml", "dtype:", "dtyp:", ("serve",), r"dtyp is not a setting; did you mean .*dtype"),
        (
            "suite.yaml",
            "metrics:",
            "metric:",
            ("eval", "--endpoint", "http://127.0.0.1:9"),
            "metric is not a setting",
        ),
        ("gate.yaml", "public_name:", "publicname:", ("gate", "check"), "publicname is not a setting"),
    ],
)
def test_unknown_setting_is_answered_with_the_nearest_known_one(
    loop: Loop, file: str, old: str, new: str, command: tuple[str, ...], hint: str
) -> None:
    path = loop.root / file
    path.write_text(path.read_text().replace(old, new))
    _one_line(loop.llmops(*command, file, check=False), 2, rf"{file}: ", hint)


@pytest.mark.parametrize(
    "command",
    [
        ("finetune",),
        ("data", "build"),
        ("serve",),
        ("eval", "--endpoint", "http://127.0.0.1:9"),
        ("gate", "check"),
    ],
    ids=lambda c: " ".join(c[:2]),
)
def test_missing_file_is_named(loop: Loop, command: tuple[str, ...]) -> None:
    _one_line(loop.llmops(*command, "gone.yaml", check=False), 2, r"gone\.yaml: no such file")


def test_malformed_row_is_named_with_file_and_line(loop: Loop) -> None:
    loop.write_rows(5)
    rows = loop.root / "rows.jsonl"
    lines = rows.read_text().splitlines()
    lines[6] = '{"prompt": "cut o'
    rows.write_text("\n".join(lines))
    _one_line(loop.llmops("data", "build", "data.yaml", check=False), 2, r"rows\.jsonl:7\b")
    assert loop.llmops("data", "list").out.count("\n") == 1, "nothing was frozen"


def test_empty_dataset_is_refused(loop: Loop) -> None:
    (loop.root / "rows.jsonl").write_text("")
    _one_line(loop.llmops("data", "build", "data.yaml", check=False), 2, "docs|rows", "no row|empty")


def test_dataset_that_was_never_built_is_named_with_the_command(loop: Loop) -> None:
    _one_line(loop.llmops("finetune", "recipe.yaml", check=False), 2, "docs", "llmops data build")


@pytest.mark.walk
def test_engine_that_dies_at_start_is_reported_and_leaves_nothing_behind(loop: Loop, tmp_path: Path) -> None:
    broken = build_tiny_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    loop.write("serve.yaml", PROFILE, base=broken)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = loop.child("serve", "serve.yaml", "--detach", "--port", str(port), check=False, timeout_s=120)
    _one_line(done, 5, "engine transformers ended with code", r"engine\.log")
    assert not (loop.root / ".llmops/serve.json").exists()
    assert loop.llmops("stop").out.strip() == "nothing was serving"
    with serve_lock(find_workspace(loop.root)), socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_eval_without_a_server_says_how_to_start_one(loop: Loop) -> None:
    _one_line(
        loop.llmops("eval", "suite.yaml", check=False), 2, "nothing serves", r"llmops serve .* --detach"
    )


def test_unknown_adapter_decision_and_name_are_bad_requests(loop: Loop) -> None:
    _one_line(loop.llmops("adapter", "show", "nothing", check=False), 2, "adapter nothing: no such adapter")
    _one_line(loop.llmops("gate", "show", "abc123", check=False), 2, "decision abc123: 0 decisions")
    _one_line(
        loop.llmops("release", "rollback", "nobody", check=False), 2, "release nobody: no earlier release"
    )
    _one_line(loop.llmops("release", "promote", "No Body", check=False), 2, "lower-case")


def test_folder_outside_a_workspace_is_refused(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = Loop(tmp_path_factory.mktemp("elsewhere"), loop.cache)
    _one_line(elsewhere.llmops("status", check=False), 2, r"no llmops\.yaml here or above")


@pytest.mark.walk
def test_full_disk_while_the_adapter_is_saved_registers_nothing(loop: Loop, shared: Path) -> None:
    """RLIMIT_FSIZE in the child stands for the full disk: rows and records still fit, the adapter's weights do not."""
    loop.write_rows(20)
    loop.llmops("data", "build", "data.yaml")
    loop.write("recipe.yaml", RECIPE, base=shared, **(TINY | {"r": 128}))  # 1 MB of weights

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    loop.llmops("ledger", "log")
    done = subprocess.run(
        [sys.executable, "-m", "llmops.cli", "finetune", "recipe.yaml"],
        cwd=loop.root, env=loop.environment(), capture_output=True, text=True, preexec_fn=limit, timeout=200,
        check=False,
    )  # fmt: skip
    _one_line(Done(done.returncode, done.stdout, done.stderr), 5, "could not be written", "again")
    assert loop.llmops("adapter", "list").out.count("\n") == 1
    store = loop.root / ".llmops/store"
    assert not (store / "adapter").exists() or list((store / "adapter").iterdir()) == []
    assert list((store / ".staging").iterdir()) == []
    assert "run.failed" in loop.llmops("ledger", "log", "--kind", "run").out
    record = loop.llmops("finetune", "recipe.yaml").out
    assert record.startswith("adapter  docs@"), "the same command succeeds once there is room"


def test_crash_of_our_own_ends_with_5_never_with_the_gates_1(loop: Loop) -> None:
    (loop.root / ".llmops").mkdir()
    (loop.root / ".llmops/llmops.db").mkdir()  # a folder where the database must be
    done = loop.llmops("status", check=False)
    assert done.code == 5
    assert "error: " in done.err
