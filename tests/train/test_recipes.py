"""Every shipped recipe trains: two steps from its own file, with its own values, on a tiny base and made-up data.

What is changed is in `_shortened`: the base, the length of the run, where it is shown, a learning rate at which two
steps have an effect that counts, the address of a teacher, and the number of processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.data.snapshot import build_snapshot
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from llmops.train.importer import ImportRequest, import_adapter
from tests.tiny import build_tiny_adapter, build_tiny_model
from tests.train.support import Bench
from tests.train.test_teacher import Server, serving

RECIPES = sorted((Path(__file__).parent.parent.parent / "recipes").glob("*.yaml"))
IN_DEFAULT_TIER = ("docstrings-sft",)
NAME = "docstrings"
DATA = """\
name: docstrings
licence: CC0-1.0
origin: made up for a test
source: {kind: files, paths: [docstrings.jsonl]}
pools: {train: 1.0, rate: 0.0, gate: 0.0}
"""


@pytest.fixture(scope="module")
def long_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base that reads rows as long as the shipped recipes allow."""
    return build_tiny_model(tmp_path_factory.mktemp("long") / "model", max_len=2048)


@pytest.fixture(scope="module")
def champion(long_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What recipes continue, and learn from."""
    return build_tiny_adapter(long_base, tmp_path_factory.mktemp("long") / "adapter")


@pytest.fixture
def teacher() -> Iterator[Server]:
    """An endpoint that answers."""
    with serving() as running:
        yield running


def _shortened(shipped: dict[str, Any], base: Path, teacher: Server) -> dict[str, Any]:
    values = {k: v for k, v in shipped.items() if k not in ("n_epochs", "n_steps", "tracking", "report_to")}
    values |= {"base_model": str(base), "n_steps": 2, "tracking": "none", "device": "cpu"}
    values.pop("launch", None)  # a machine with as many devices: tests/train/test_launch.py
    values["learning_rate"] = max(5e-3, float(shipped["learning_rate"]))
    if "url" in values["method"].get("teacher", {}):
        values["method"]["teacher"]["url"] = teacher.url
    return values


def _fill(bench: Bench, champion: Path) -> None:
    """A dataset, preferences and a champion by the names that the shipped recipes use."""
    words = ("sum", "list", "file", "path", "name", "line")
    rows = [
        {"prompt": f"What does {word}_{i} do?", "completion": f"Return the {word}.", "group": f"g{i}"}
        for i in range(40)
        for word in words
    ]
    (bench.root / "docstrings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (bench.root / "docstrings.yaml").write_text(DATA)
    build_snapshot(bench.root / "docstrings.yaml", *_store(bench.workspace))
    pairs = [(f"What does {w}_{i} do?", f"Return the {w}.", "It is one.") for i in range(4) for w in words]
    bench.prefer(pairs, "docstrings-train")
    import_adapter(ImportRequest(champion, str(bench.base), NAME), bench.workspace)


def _store(workspace: Workspace) -> tuple[Any, Any]:
    registry = Registry.of(workspace)
    return registry.store, registry.ledger


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=() if p.stem in IN_DEFAULT_TIER else pytest.mark.walk)
        for p in RECIPES
    ],
)
def test_shipped_recipe_trains_two_steps(
    path: Path,
    workspace: Workspace,
    long_base: Path,
    champion: Path,
    teacher: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shipped = yaml.safe_load(path.read_text())
    pytest.importorskip(
        {"nf4": "bitsandbytes", "int8": "torchao"}.get(shipped.get("quantization", ""), "torch")
    )
    bench = Bench(workspace, long_base)
    _fill(bench, champion)
    folder = bench.root / "recipes"
    folder.mkdir()
    for file in path.parent.glob("*.py"):
        shutil.copy(file, folder)
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(_shortened(shipped, long_base, teacher)))
    monkeypatch.chdir(bench.root)
    done = CliRunner().invoke(app, ["finetune", str(copy), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    lineage = json.loads(done.stdout)["lineage"]
    assert lineage["metrics"]["n_steps"] == 2
    changed = (
        "device",
        "base_model",
        "n_epochs",
        "n_steps",
        "tracking",
        "learning_rate",
        "continue_from",
        "method",
    )
    for name, value in shipped.items():
        if name not in changed and value != "auto" and not isinstance(value, dict):
            assert lineage["recipe"][name] == value, name
    assert lineage["recipe"]["method"]["kind"] == shipped["method"]["kind"]
    assert bool(lineage["continues"]) == ("continue_from" in shipped)


def test_shipped_rewards_say_what_their_words_say() -> None:
    from llmops.data.builder import load_function

    file = RECIPES[0].parent / "rewards.py"
    common, sentence = (load_function(file, name, "function") for name in ("words_in_common", "one_sentence"))
    assert common([], "Return the sum.", "return the whole sum") == pytest.approx(2 * 3 / (3 + 4))
    assert (common([], "", "x"), common([], "Same words.", "same words")) == (0.0, 1.0)
    assert [sentence([], text, "") for text in ("Fine.", "cut in the", "Two.\nLines.")] == [1.0, 0.0, 0.0]
