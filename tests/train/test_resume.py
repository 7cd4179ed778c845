"""Runs that were killed, interrupted or damaged, and what `--resume` makes of them: the adapter of an unbroken run."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmops import checkpoints
from llmops.cli.commands import app
from llmops.errors import BadRequest, ConfigError, Interrupted, StoreError
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry
from llmops.train.finetune import finetune, resume
from llmops.train.importer import ImportRequest, import_adapter
from llmops.train.methods import TRAIN
from tests.tiny import build_tiny_adapter
from tests.train.kills import at_step, go_on, in_save, start
from tests.train.support import Bench

TIMES = ("elapsed_s", "train_s", "tokens_per_s", "supervised_tokens_per_s")


@dataclass
class Unbroken:
    """A recipe with its adapter and curve, trained without a break in a workspace of its own kind."""

    bench: Bench
    path: Path
    record: AdapterRecord
    curve: list[dict[str, Any]]


def _curve(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def _newest_run(bench: Bench) -> Path:
    return max(bench.workspace.runs.iterdir())


def _train_unbroken(bench: Bench, path: Path) -> Unbroken:
    record = finetune(path, bench.workspace)
    return Unbroken(bench, path, record, _curve(_newest_run(bench)))


@pytest.fixture
def unbroken(bench: Bench) -> Unbroken:
    """Eight steps with dropout on rows of unequal length, saved behind every third."""
    bench.rows([(f"What does f{i} do?", "Return " + "value " * (1 + i % 5) + ".") for i in range(12)])
    path = bench.recipe(
        n_steps=8,
        batch={"per_device": 2, "accumulation": 2},
        lora={"r": 8, "alpha": 16, "dropout": 0.1},
        checkpoint={"every_n_steps": 3},
        held_out_frac=0.2,
    )
    return _train_unbroken(bench, path)


def _same(unbroken: Unbroken, record: AdapterRecord) -> None:
    assert record.adapter == unbroken.record.adapter
    assert _curve(_newest_run(unbroken.bench)) == unbroken.curve


def _kinds(bench: Bench) -> list[str]:
    return [e.kind for e in Registry.of(bench.workspace).ledger.events() if e.kind.startswith("run.")]


def test_run_killed_at_a_step_gives_the_adapter_of_an_unbroken_one(unbroken: Unbroken) -> None:
    bench, path = unbroken.bench, unbroken.path
    assert start(path, bench.workspace, partial(at_step, 5)) == signal.SIGKILL
    assert [c.step for c in checkpoints.checkpoints(_newest_run(bench))] == [3]
    record = resume(path, bench.workspace)
    _same(unbroken, record)
    assert _kinds(bench) == ["run.started", "run.finished", "run.started", "run.resumed", "run.finished"]
    assert not (_newest_run(bench) / "trainer").exists()


def test_run_killed_during_a_save_gives_the_adapter_of_an_unbroken_one(unbroken: Unbroken) -> None:
    bench, path = unbroken.bench, unbroken.path
    assert start(path, bench.workspace, partial(in_save, 6, 5)) == signal.SIGKILL
    half = _newest_run(bench) / "trainer" / "checkpoint-6"
    assert half.is_dir()
    assert [c.step for c in checkpoints.checkpoints(_newest_run(bench))] == [3]
    _same(unbroken, resume(path, bench.workspace))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_steps_and_during_saves_change_nothing(unbroken: Unbroken) -> None:
    """Ten runs, each killed twice: at a random step, and, when gone on with, at a random file of a save."""
    bench, path = unbroken.bench, unbroken.path
    draw = random.Random(0)
    for _ in range(10):
        first = start(path, bench.workspace, partial(at_step, draw.randint(4, 6)))
        second = go_on(path, bench.workspace, partial(in_save, 6, draw.randint(1, 12)))
        assert (first, second) == (signal.SIGKILL, signal.SIGKILL)
        _same(unbroken, resume(path, bench.workspace))


METHODS: dict[str, dict[str, Any]] = {
    "sft": {"lora": {"r": 8, "dropout": 0.1}},
    "distill": {
        "method": {"kind": "distill", "teacher": {"kind": "model"}},
        "lora": {"r": 8, "dropout": 0.1},
    },
    "grpo": {
        "method": {
            "kind": "grpo",
            "rewards": [{"kind": "python", "function": "rewards.py::vowels"}],
            "n_answers": 2,
            "max_answer_tokens": 8,
        },
        "batch": {"per_device": 4},
    },
    **{
        kind: {"method": {"kind": kind}, "data": {"kind": "preferences", "name": "docs-train"}}
        for kind in ("dpo", "kto", "orpo", "reward")
    },
}


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("sft", "dpo") else pytest.param(kind, marks=pytest.mark.walk)
        for kind in sorted(TRAIN)
    ],
)
def test_every_method_goes_on_from_an_interruption_to_the_same_adapter(
    bench: Bench, tmp_path: Path, kind: str
) -> None:
    if kind not in METHODS:
        pytest.fail(f"no recipe for method {kind}: say in METHODS how it is trained")
    changes = dict(METHODS[kind])
    if kind == "distill":
        teacher = build_tiny_adapter(bench.base, tmp_path / "teacher", seed=3)
        changes["method"] = changes["method"] | {"teacher": _imported(bench, teacher)}
    bench.prefer([(f"What does f{i} do?", f"Return value {i}.", f"It is {i}!") for i in range(8)])
    (bench.root / "rewards.py").write_text(
        "def vowels(prompt, completion, reference):\n    return float(sum(c in 'aeiou' for c in completion))\n"
    )
    path = bench.recipe(**{"n_steps": 4, "batch": {"per_device": 2}} | changes)
    unbroken = _train_unbroken(bench, path)
    with pytest.raises(Interrupted, match=r"go on behind step 3: llmops finetune --resume"):
        finetune(path, bench.workspace, _at(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
    _same(unbroken, resume(path, bench.workspace))


def _imported(bench: Bench, folder: Path) -> dict[str, Any]:
    record = import_adapter(ImportRequest(folder, str(bench.base), "teacher"), bench.workspace)
    return {"kind": "model", "adapter": record.adapter}


def _at(step: int, do: Callable[[], object]) -> Callable[[int, int, str], None]:
    """A progress callback that does something once a step has been taken."""

    def progress(done: int, total: int, note: str) -> None:
        if done == step and note.startswith("loss "):
            do()

    return progress


def _interrupt(bench: Bench, path: Path, number: int = signal.SIGINT) -> Path:
    """Begin a run that is interrupted in its fifth step and saved behind its sixth; returns its folder."""
    with pytest.raises(Interrupted):
        finetune(path, bench.workspace, _at(5, lambda: os.kill(os.getpid(), number)))
    return _newest_run(bench)


def _llmops(bench: Bench, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(bench.root))
    return CliRunner().invoke(app, list(words))


def test_sigterm_saves_and_status_gc_and_resume_know_of_it(
    unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, path = unbroken.bench, unbroken.path
    with pytest.raises(Interrupted) as caught:
        finetune(path, bench.workspace, _at(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    folder = _newest_run(bench)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert "nothing is registered" in str(caught.value)
    assert [c.step for c in checkpoints.checkpoints(folder)] == [3, 5]
    assert (folder / "error.txt").read_text() == f"{caught.value}\n"
    said = _llmops(bench, monkeypatch, "status").stdout
    assert (
        f"resumable  {folder.name}, behind step 5 of 8: llmops finetune --resume --run {folder.name}" in said
    )
    swept = _llmops(bench, monkeypatch, "gc", "--older-than", "0").stdout
    assert f"kept checkpoints of {folder.name} (step 5 of 8)" in swept
    done = _llmops(bench, monkeypatch, "finetune", "--resume")
    assert done.exit_code == 0, done.exception
    assert unbroken.record.adapter in done.stdout
    assert _curve(folder) == unbroken.curve
    assert "resumable" not in _llmops(bench, monkeypatch, "status").stdout


def test_gc_removes_checkpoints_only_when_asked(unbroken: Unbroken, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = unbroken.bench
    folder = _interrupt(bench, unbroken.path)
    _llmops(bench, monkeypatch, "gc", "--older-than", "0")
    assert checkpoints.newest_whole(folder) is not None
    assert (
        f"{folder.name}/trainer"
        in _llmops(bench, monkeypatch, "gc", "--older-than", "0", "--checkpoints").stdout
    )
    assert checkpoints.newest_whole(folder) is None
    with pytest.raises(BadRequest, match="no unfinished run of tiny-sft with a checkpoint"):
        resume(unbroken.path, bench.workspace)


def test_second_ctrl_c_ends_at_once(unbroken: Unbroken) -> None:
    bench = unbroken.bench

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="go on behind step 3") as caught:
        finetune(unbroken.path, bench.workspace, _at(5, twice))
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    curve = _curve(_newest_run(bench))
    assert [line["step"] for line in curve] == [1, 2, 3, 4, 5]
    _same(unbroken, resume(unbroken.path, bench.workspace))


@pytest.mark.walk
def test_damaged_checkpoint_is_passed_over(unbroken: Unbroken) -> None:
    folder = _interrupt(unbroken.bench, unbroken.path)
    weights = folder / "trainer" / "checkpoint-6" / "adapter_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    newest = checkpoints.newest_whole(folder)
    assert newest is not None
    assert newest.step == 3
    _same(unbroken, resume(unbroken.path, unbroken.bench.workspace))


def test_only_as_many_checkpoints_as_asked_for_are_kept(bench: Bench) -> None:
    path = bench.recipe(n_steps=8, checkpoint={"every_n_steps": 1, "keep": 3})
    folder = _interrupt(bench, path)
    assert [c.step for c in checkpoints.checkpoints(folder)] == [4, 5, 6]


@pytest.mark.walk
def test_run_of_another_recipe_or_other_rows_is_not_gone_on_with(unbroken: Unbroken) -> None:
    bench, path = unbroken.bench, unbroken.path
    folder = _interrupt(bench, path)
    text, rows = path.read_text(), (bench.root / "rows.jsonl").read_text()
    path.write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    with pytest.raises(ConfigError, match=r"began with recipe\.learning_rate 0\.01, and it is 0\.02 now"):
        resume(path, bench.workspace)
    path.write_text(text)
    bench.rows([("What does g do?", "Nothing.")] * 12)
    with pytest.raises(ConfigError, match="began with data "):
        resume(path, bench.workspace)
    assert "run.resumed" not in _kinds(bench)
    (bench.root / "rows.jsonl").write_text(rows)
    path.write_text(text.replace("every_n_steps: 3", "every_n_steps: 2"))  # shapes nothing
    assert resume(path, bench.workspace, run_id=folder.name[:20]).adapter == unbroken.record.adapter


def test_run_that_another_process_works_on_is_left_alone(unbroken: Unbroken) -> None:
    from filelock import FileLock

    folder = _interrupt(unbroken.bench, unbroken.path)
    with FileLock(folder / "lock"), pytest.raises(BadRequest, match="another process works on it"):
        resume(unbroken.path, unbroken.bench.workspace)


@pytest.mark.walk
def test_early_stopping_keeps_the_weights_of_the_lowest_loss_also_over_a_break(bench: Bench) -> None:
    bench.rows([(f"What does f{i} do?", f"Return {i % 3}.") for i in range(20)])
    path = bench.recipe(
        n_steps=40,
        batch={"per_device": 4},
        learning_rate=3e-2,
        held_out_frac=0.3,
        early_stopping={"every_n_steps": 2, "patience": 3},
        checkpoint={"every_n_steps": 5},
    )
    unbroken = _train_unbroken(bench, path)
    looks = {line["step"]: line["held_out_loss"] for line in unbroken.curve[:-1] if "held_out_loss" in line}
    closing = unbroken.curve[-1]
    best = min(looks, key=lambda step: looks[step])
    assert closing["best_step"] == best
    assert closing["held_out_loss"] == pytest.approx(looks[best], rel=1e-6)
    assert closing["n_steps"] == best + 2 * 3 < 40
    assert list(looks) == list(range(2, best + 7, 2))
    with pytest.raises(Interrupted):
        finetune(path, bench.workspace, _at(best + 1, lambda: os.kill(os.getpid(), signal.SIGINT)))
    _same(unbroken, resume(path, bench.workspace))


@pytest.mark.walk
def test_tracker_shows_one_run_over_a_break(bench: Bench) -> None:
    mlflow = pytest.importorskip("mlflow")
    path = bench.recipe(n_steps=4, tracking="mlflow")
    with pytest.raises(Interrupted):
        finetune(path, bench.workspace, _at(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
    record = resume(path, bench.workspace)
    run_id = Registry.of(bench.workspace).lineage(record).tracking_run
    client = mlflow.MlflowClient(tracking_uri=bench.workspace.mlflow_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert {m.step for m in client.get_metric_history(run_id, "loss")} == {1, 2, 3, 4}


@pytest.mark.walk
def test_disk_that_takes_no_more_checkpoints_leaves_the_whole_ones(bench: Bench) -> None:
    """A real limit of the operating system: from step 4 on no file may grow over 120 kB, as the optimizer's does."""
    path = bench.recipe(n_steps=6, lora={"r": 16}, checkpoint={"every_n_steps": 3, "keep": 1})
    unbroken = _train_unbroken(bench, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, before[1]))

    path.write_text(path.read_text().replace("every_n_steps: 3", "every_n_steps: 2"))
    try:
        with pytest.raises(StoreError, match=r"free space.*go on behind step 2: llmops finetune --resume"):
            finetune(path, bench.workspace, _at(3, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in (_newest_run(bench) / "trainer").glob("*checkpoint*")] == ["checkpoint-2"]
    _same(unbroken, resume(path, bench.workspace))
