"""lm-evaluation-harness against the endpoint: its own numbers, and proof of who answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.evals.conftest import Room, right
from tests.evals.counterpart import Counterpart, Fault
from tests.in_process import llmops
from tests.loop import Done

TASK = {
    "task": "counted",
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
N = 12


def write_task(room: Room) -> Path:
    """A local task of 12 questions, whose answers lie beside it."""
    folder = room.workspace.root / "tasks"
    folder.mkdir()
    rows = [{"question": f"question {i}", "answer": f"answer {i}"} for i in range(N)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    (folder / "counted.yaml").write_text(yaml.safe_dump(task))
    return folder


def run(room: Room, counterpart: Counterpart) -> Done:
    return llmops(
        room.workspace.root, "eval", "lm-eval", "--tasks", "counted", "--include-path", str(write_task(room)),
        "--endpoint", counterpart.url, "--json",
    )  # fmt: skip


@pytest.mark.walk
def test_tasks_are_scored_for_every_system_and_an_answer_by_another_model_is_found_out(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str | Fault:
        if model == room.base.model_name:
            return right(prompt)
        wrong = {"x-llmops-model": room.base.digest} if prompt.endswith("3") else {}
        return Fault(right(prompt) if prompt.endswith("1") else "no idea", headers=wrong)

    counterpart = room.serve(script)
    done = run(room, counterpart)
    assert done.code == 4, done.err
    base, tuned = json.loads(done.out)
    assert base["results"]["counted"]["exact_match,none"] == 1.0
    assert tuned["results"]["counted"]["exact_match,none"] == pytest.approx(2 / N)  # questions 1 and 11
    assert (base["n_answers"], tuned["n_answers"], base["invalid"]) == (N, N, [])
    assert tuned["invalid"] == [f"1 answers came from model bbbbbbbbbbbb, not {room.adapter.adapter[:12]}"]
    assert {model for model, _ in counterpart.asked} == {base["system"], tuned["system"]}
    events = room.registry.ledger.events("lm_eval.stored")
    assert [(e.body["model"], e.body["artifact"], e.body["invalid"]) for e in events] == [
        (found["model"], found["artifact"], found["invalid"]) for found in (base, tuned)
    ]
    stored = room.registry.store.verify("lm_eval", tuned["artifact"])
    assert list(stored.glob("samples_counted*"))
    (kept,) = stored.glob("results*")
    assert json.loads(kept.read_bytes())["results"] == tuned["results"]


def test_task_that_does_not_exist_ends_without_an_answer(room: Room) -> None:
    done = llmops(room.workspace.root, "eval", "lm-eval", "--tasks", ",", "--endpoint", "http://127.0.0.1:9")
    assert done.code == 2
    assert "no task is named; give --tasks" in done.err
    assert room.registry.ledger.events("run.started") == []
