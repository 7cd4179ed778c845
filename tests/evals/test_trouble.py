"""What a killed process, a full disk and a missing tracker do to an evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmops.records import AdapterRecord
from llmops.registry.adapters import NewAdapter
from llmops.tracking import TrackedRun, start_tracking
from tests.evals.conftest import N_CASES, Room, right, write_adapter
from tests.evals.counterpart import Counterpart
from tests.evidence import LINEAGE, NO_PROBES
from tests.serving.gateway import wait_for

ROOT = Path(__file__).parents[2]

# Sizes of files are limited as on a full disk; SIGXFSZ is ignored, so that writes fail with EFBIG instead.
CHILD = """
import resource, signal, sys
from pathlib import Path
from llmops.errors import LlmopsError
from llmops.evals.run import EvalRequest, evaluate
from llmops.settings import find_workspace
root, url, limit_bytes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
workspace = find_workspace(root)
if limit_bytes:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
try:
    evaluate(root / "suite.yaml", EvalRequest(url, concurrency=2), workspace)
except LlmopsError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def child(room: Room, counterpart: Counterpart, limit_bytes: int = 0) -> subprocess.Popen[str]:
    room.suite()
    command = [sys.executable, "-c", CHILD, str(room.workspace.root), counterpart.url, str(limit_bytes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answered(room: Room) -> list[tuple[str, str]]:
    """(case, system) of every whole line that was kept."""
    return [(c["case"], c["system"]) for c in map(json.loads, kept_lines(room))]


def kept_lines(room: Room) -> list[bytes]:
    """The whole lines of the one session's completions."""
    files = room.workspace.runs.glob("*/completions.jsonl")
    lines = [line for path in files for line in path.read_bytes().splitlines(keepends=True)]
    return [line for line in lines if line.endswith(b"\n")]


@pytest.mark.walk
def test_killed_evaluation_goes_on_where_it_stopped(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str:
        if len(counterpart.asked) == 40:
            wait_for(lambda: len(kept_lines(room)) > 0)
        if len(counterpart.asked) >= 80:
            process.kill()
        return right(prompt)

    counterpart = room.serve(script)
    process = child(room, counterpart)
    process.communicate(timeout=120)
    assert process.returncode == -9
    kept = answered(room)
    assert 0 < len(kept) == len(set(kept)) <= 82
    (folder,) = room.workspace.runs.iterdir()
    counterpart.asked.clear()
    reports = room.run(counterpart, session=folder.name)
    assert len(counterpart.asked) == 2 * N_CASES - len(kept)
    assert [(r.n_errored, r.invalid, r.metrics["exact_match"].value) for r in reports] == [(0, (), 100.0)] * 2


def test_full_disk_stops_the_run_with_the_way_to_go_on_and_no_report(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt) + " " * 4000)
    process = child(room, counterpart, limit_bytes=400_000)  # room for the database, not for all answers
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 5, out
    (folder,) = room.workspace.runs.iterdir()
    assert "completions could not be written" in out
    assert f"--resume {folder.name}" in out
    assert room.registry.ledger.events("report.stored") == []
    kept = answered(room)
    counterpart.asked.clear()
    reports = room.run(counterpart, session=folder.name)
    assert len(kept) > 0
    assert len(counterpart.asked) == 2 * N_CASES - len(kept)
    assert [r.metrics["exact_match"].value for r in reports] == [100.0, 100.0]


def tracked_adapter(room: Room, run: str) -> AdapterRecord:
    folder = write_adapter(room.folder / "tracked", 9)
    lineage = replace(LINEAGE, origin="trained", tracking_run=run)
    new = NewAdapter("tracked", folder, room.base, room.base.contract, NO_PROBES, lineage, {})
    return room.registry.register(new)


def test_figures_stand_beside_the_training_run_in_the_tracker(room: Room) -> None:
    from mlflow import MlflowClient

    tracker = start_tracking("mlflow", room.workspace, TrackedRun("training", {}))
    assert tracker.run_id is not None
    tracker.finish("FINISHED")
    tracked_adapter(room, tracker.run_id)
    half = room.serve(lambda m, p, n: right(p) if m.startswith("tracked") else "no idea")
    room.run(half)
    found = MlflowClient(tracking_uri=room.workspace.mlflow_uri).get_run(tracker.run_id).data.metrics
    assert found == {"eval/questions/exact_match": 100.0}


def test_tracker_without_the_run_takes_nothing_from_a_report(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    record = tracked_adapter(room, "0" * 32)
    reports = room.run(room.serve(lambda model, prompt, nth: right(prompt)))
    assert reports[1].model == record.adapter
    assert len(room.registry.ledger.events("report.stored")) == 2
    assert "figures are not shown in the tracker" in caplog.text
