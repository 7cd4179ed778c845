from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llmops.upkeep.rewrite import without_example_comments
from llmops.upkeep.template import FILES, FOLDERS, template_root
from tests.command_line import parse
from tests.loop import Done, Loop
from tests.test_docs import _commands_in
from tests.upkeep.loading import load_all

ROOT = Path(__file__).parent.parent.parent


def _write_rows(path: Path, n: int = 120, offset: int = 0) -> Path:
    rows = [
        {"prompt": f"Ticket {i}: where is order {i}?", "completion": f"Order {i} leaves us tomorrow."}
        for i in range(offset, offset + n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def shell(tmp_path: Path) -> Loop:
    """A folder that is no workspace, and the command line in it."""
    return Loop(tmp_path, tmp_path / "cache")


def _refused(done: Done, code: int, pattern: str) -> None:
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert (done.code, len(lines)) == (code, 1), done.err
    assert "Traceback" not in done.err
    assert re.search(pattern, lines[0]), lines[0]


def _words(root: Path) -> Iterator[tuple[Path, str]]:
    for path in root.rglob("*"):
        if path.suffix in (".yaml", ".md"):
            yield path, path.read_text()


def _check_commands(root: Path) -> None:
    """Each YAML's first line is its command, pages' commands parse, and what they name is there."""
    firsts = [path.read_text().splitlines()[0].removeprefix("# ") for path in root.glob("*/**/*.yaml")]
    calls = [
        first for first in firsts if first.startswith("llmops ")
    ]  # others are for kubectl, docker, Prometheus
    for page in root.rglob("*.md"):
        calls += _commands_in(page.read_text())
    assert len(calls) > 10
    for call in calls:
        words = shlex.split(call.split(" | ")[0].replace("<", "").replace(">", ""))
        parse(words[1:])
        for word in words:
            named = word.endswith(".yaml") and "/" in word  # a bare name is the reader's own file
            assert not named or (root / word).is_file(), call


# ------------------------------------------------------------ the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built by pip as a user's pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True, timeout=280)
    (built,) = folder.glob("llmops-*.whl")
    return built


def test_wheel_carries_exactly_the_workspace_files_that_git_knows(wheel: Path) -> None:
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS, *FILES]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True)
    names = zipfile.ZipFile(wheel).namelist()
    inside = {n.removeprefix("llmops/_workspace/") for n in names if n.startswith("llmops/_workspace/")}
    assert inside == {line for line in listed.stdout.splitlines() if (ROOT / line).is_file()}
    assert not [name for name in names if name.startswith(("tests/", "recipes/", "data/", "evals/"))]


@pytest.mark.walk
def test_installed_wheel_makes_a_workspace_far_from_any_checkout(wheel: Path, tmp_path: Path) -> None:
    target, outside = tmp_path / "site", tmp_path / "outside"
    outside.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True
    )
    env = {**os.environ, "PYTHONPATH": str(target)}
    code = "import llmops.upkeep.template as t; print(t.template_root())"
    where = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=outside, env=env, capture_output=True, text=True, check=True
    )
    assert Path(where.stdout.strip()) == target / "llmops/_workspace"
    _write_rows(outside / "my.jsonl")
    for arguments in (["ws"], ["own", "--name", "tickets", "--rows", "my.jsonl"]):
        subprocess.run(
            [sys.executable, "-P", "-m", "llmops.cli", "init", *arguments], cwd=outside, env=env, check=True
        )
    assert len(load_all(outside / "ws")) >= 7
    assert load_all(outside / "own").keys() >= {"data/tickets.yaml", "recipes/tickets-sft.yaml"}
    status = subprocess.run(
        [sys.executable, "-P", "-m", "llmops.cli", "status"], cwd=outside / "own", env=env,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"workspace  {outside / 'own'}" in status.stdout


def test_checkout_is_its_own_template() -> None:
    assert template_root() == ROOT


# ------------------------------------------------------------ the example


def test_example_is_the_shipped_files_byte_for_byte(shell: Loop) -> None:
    out = shell.llmops("init", "ws").out
    ws = shell.root / "ws"
    assert (ws / ".gitignore").read_text().startswith(".llmops/\n")
    assert yaml.safe_load((ws / "llmops.yaml").read_text()) == {"name": "docstrings"}
    for path in ws.rglob("*"):
        relative = path.relative_to(ws)
        if path.is_file() and relative.parts[0] in FOLDERS:
            assert path.read_bytes() == (ROOT / relative).read_bytes(), relative
    assert load_all(ws).keys() >= {"data/docstrings.yaml", "serving/vllm.yaml", "evals/gates/docstrings.yaml"}
    _check_commands(ws)
    printed = [line.strip() for line in out.splitlines() if line.startswith("  llmops ")]
    assert printed == _commands_in((ws / "README.md").read_text())[: len(printed)]
    assert printed[0] == "llmops data build data/docstrings.yaml"
    assert printed[-1] == "llmops release promote docstrings"


@pytest.mark.walk
def test_example_builds_its_data(shell: Loop) -> None:
    shell.llmops("init", str(shell.root / "absolute" / "ws"))
    ws = Loop(shell.root / "absolute" / "ws", shell.cache)
    assert "dataset docstrings@" in ws.llmops("data", "build", "data/docstrings.yaml").out


# ------------------------------------------------------------ a user's own rows


@pytest.mark.walk
def test_own_rows_become_a_workspace_that_builds_and_trains(shell: Loop, tiny_model: Path) -> None:
    _write_rows(shell.root / "my.jsonl", 150)
    _write_rows(shell.root / "more rows.jsonl", 50, offset=150)
    out = shell.llmops(
        "init", "ws", "--name", "tickets", "--rows", "my.jsonl", "--rows", "more rows.jsonl",
        "--licence", "Own: #1", "--base-model", str(tiny_model),
    ).out  # fmt: skip
    ws = Loop(shell.root / "ws", shell.cache)
    loaded = load_all(ws.root)
    _check_commands(ws.root)
    said = yaml.safe_load((ws.root / "data/tickets.yaml").read_text())
    assert (said["licence"], said["drop_budget_frac"]) == ("Own: #1", 0)
    assert said["source"] == {"kind": "files", "paths": ["my.jsonl", "more rows.jsonl"]}
    built = ws.llmops("data", "build", "data/tickets.yaml").out
    n_train, _, n_gate = (int(n) for n in re.findall(r"(?:train|rate|gate) (\d+)", built))
    assert f"of {n_train} rows" in out
    assert f"suite    {min(n_gate, 128)} cases" in out
    gate = yaml.safe_load((ws.root / "evals/gates/tickets.yaml").read_text())
    assert 32 <= gate["min_cases"] <= n_gate
    assert getattr(loaded["recipes/tickets-sft.yaml"], "base_model") == str(tiny_model)  # noqa: B009
    trained = ws.llmops("finetune", "recipes/tickets-sft.yaml").out
    assert re.search(r"tickets-sft@[0-9a-f]{12}", trained)


def test_own_workspace_says_nothing_about_the_example(shell: Loop) -> None:
    _write_rows(shell.root / "my.jsonl")
    shell.llmops("init", "ws", "--name", "tickets", "--rows", "my.jsonl")
    for path, text in _words(shell.root / "ws"):
        assert "docstring" not in text.lower(), path
        assert path.suffix == ".md" or "standard library" not in text, path
    ours = shell.root / "ws/serving/local.yaml"
    assert ours.read_text() == (ROOT / "serving/local.yaml").read_text()
    assert (
        "asking for more than one makes a false pass rarer"
        in (shell.root / "ws/evals/gates/tickets.yaml").read_text()
    )
    assert not (shell.root / "ws/data/docstrings.py").exists()
    dpo = (shell.root / "ws/recipes/tickets-dpo.yaml").read_text()
    assert "functions" not in dpo
    assert "# The champion of the public name" in dpo


def test_comment_about_the_example_goes_as_a_whole() -> None:
    text = (
        "# llmops x\n# Stays true.\na: 1 # of the modules\n# Seen on the\n# standard library.\nb: 2  # kept\n"
    )
    assert without_example_comments(text) == "# llmops x\n# Stays true.\na: 1\nb: 2  # kept\n"


def test_long_rows_are_served_and_trained_on_whole(shell: Loop) -> None:
    rows = [{"prompt": f"{i} " + "long text " * 900, "completion": "word " * 200} for i in range(80)]
    (shell.root / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shell.llmops("init", "ws", "--name", "long", "--rows", "long.jsonl", "--drop-too-long", "0.05")
    recipe = yaml.safe_load((shell.root / "ws/recipes/long-sft.yaml").read_text())
    profile = yaml.safe_load((shell.root / "ws/serving/local.yaml").read_text())
    suite = yaml.safe_load((shell.root / "ws/evals/suites/long.yaml").read_text())
    # 10,000 bytes are at least 2,500 tokens of English; the profile serves a third as many tokens as bytes.
    assert profile["max_model_tokens"] == 4096
    assert (recipe["max_tokens"], recipe["drop_budget_frac"]) == (4096, 0.05)
    assert suite["decoding"]["max_tokens"] == 336  # 1,000 bytes, a third, up to a multiple of 16


@pytest.mark.parametrize(("n", "share"), [(90, 0.5), (130, 0.4), (300, 0.2)])
def test_gate_can_reach_its_cases_with_few_rows(shell: Loop, n: int, share: float) -> None:
    _write_rows(shell.root / "my.jsonl", n)
    shell.llmops("init", "ws", "--name", "few", "--rows", "my.jsonl")
    ws = Loop(shell.root / "ws", shell.cache)
    ws.llmops("data", "build", "data/few.yaml")
    record = json.loads(ws.llmops("data", "show", "few", "--json").out)
    gate = yaml.safe_load((ws.root / "evals/gates/few.yaml").read_text())
    assert record["n_rows"]["gate"] >= gate["min_cases"] >= 32
    assert yaml.safe_load((ws.root / "data/few.yaml").read_text())["pools"]["gate"] == share


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("lines", "pattern"),
    [
        (["{"], r"bad\.jsonl:121: malformed JSON.*; 1 of 121 rows cannot be used, mend"),
        (["", "[]"], r"bad\.jsonl:121: empty line; 2 of 122 rows"),
        (['{"prompt": "x", "completion": " "}'], r"bad\.jsonl:121: empty answer"),
        (['{"prompt": "x", "completion": "y", "images": ["i"]}'], r"unsupported field: images"),
        (['{"prompt": "x", "completion": "y"}'] * 2, r"bad\.jsonl:122: duplicate: same as bad\.jsonl:121"),
    ],
)
def test_bad_line_is_named_and_nothing_is_written(shell: Loop, lines: list[str], pattern: str) -> None:
    path = _write_rows(shell.root / "bad.jsonl")
    path.write_text(path.read_text() + "".join(line + "\n" for line in lines))
    done = shell.llmops("init", "sub/ws", "--name", "bad", "--rows", "bad.jsonl", check=False)
    _refused(done, 2, pattern)
    assert list(shell.root.rglob("*.yaml")) == []
    assert list((shell.root / "sub").iterdir()) == []


@pytest.mark.parametrize(
    ("n", "group", "pattern"),
    [
        (0, None, r"few\.jsonl: has no rows"),
        (
            40,
            None,
            r"40 rows .* give the gate \d+ cases at most, and it decides nothing under 32; give about 77",
        ),
        (300, "one", r"300 rows \(300 prompts in 1 groups\).*give more groups"),
    ],
)
def test_too_few_rows_say_how_many_are_needed(shell: Loop, n: int, group: str | None, pattern: str) -> None:
    rows = [
        {"prompt": f"p{i}", "completion": f"c{i}"} | ({"group": group} if group else {}) for i in range(n)
    ]
    (shell.root / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = shell.llmops("init", "ws", "--name", "few", "--rows", "few.jsonl", check=False)
    _refused(done, 2, pattern)
    assert not (shell.root / "ws").exists()


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("full",), r"full: is not empty; give a new folder"),
        (("my.jsonl",), r"my\.jsonl: is a file"),
        (("link",), r"link: is a link to nothing"),
        (("ws", "--name", "Tickets", "--rows", "my.jsonl"), r"name 'Tickets': use lower-case"),
        (("ws", "--name", "latest", "--rows", "my.jsonl"), r"name 'latest'"),
        (("ws", "--name", "x" * 60, "--rows", "my.jsonl"), r"has 60 characters"),
        (("ws", "--name", "x"), r"--name and --rows go together"),
        (("ws", "--rows", "my.jsonl"), r"--name and --rows go together"),
        (("ws", "--licence", "MIT"), r"--licence and --drop-too-long are about --rows"),
        (("ws", "--name", "x", "--rows", "none.jsonl"), r"none\.jsonl: no such file"),
        (("ws", "--name", "x", "--rows", "full"), r"full: is no file"),
        (("ws", "--name", "x", "--rows", "my.jsonl", "--rows", "my.jsonl"), r"data/my\.jsonl is taken"),
        (("ws", "--name", "x", "--rows", "my.jsonl", "--licence", " "), r"licence ' '"),
        (("ws", "--base-model", "./nowhere"), r"base model './nowhere': no such folder"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(
    shell: Loop, arguments: tuple[str, ...], pattern: str
) -> None:
    _write_rows(shell.root / "my.jsonl")
    (shell.root / "full").mkdir()
    (shell.root / "full/kept").write_text("kept")
    (shell.root / "link").symlink_to("nowhere-at-all")
    before = sorted(shell.root.rglob("*"))
    _refused(shell.llmops("init", *arguments, check=False), 2, pattern)
    assert sorted(shell.root.rglob("*")) == before
    assert (shell.root / "full/kept").read_text() == "kept"


def test_empty_folder_is_filled_and_stays_the_same_folder(shell: Loop) -> None:
    folder = shell.root / "ws"
    folder.mkdir()
    inode = folder.stat().st_ino
    done = subprocess.run(
        [sys.executable, "-P", "-m", "llmops.cli", "init", "."], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert folder.stat().st_ino == inode
    assert len(load_all(folder)) >= 7
    assert [path for path in shell.root.iterdir() if path != folder] == []


def test_full_disk_leaves_nothing_behind(shell: Loop) -> None:
    _write_rows(shell.root / "my.jsonl", 1000)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-P", "-m", "llmops.cli", "init", "ws", "--name", "x", "--rows", "my.jsonl"],
        cwd=shell.root, capture_output=True, text=True, preexec_fn=limit, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "File too large" in done.stderr
    assert [path.name for path in shell.root.iterdir()] == ["my.jsonl"]
