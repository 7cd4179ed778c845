"""Runs that were killed, interrupted or damaged, and what `--resume` makes of them: the adapter of an unbroken run."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmops import checkpoints
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry
from llmops.train.finetune import finetune, resume
from tests.train.kills import at_step, in_save, start
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
