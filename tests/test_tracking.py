"""Tracking: what MLflow shows of a run, in a database of the workspace's own."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from llmops.errors import ConfigError, TrainingFailed
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from llmops.tracking import DIGEST_TAG, TrackedRun, log_report_metrics, start_tracking
from llmops.train.finetune import finetune
from tests.train.support import Bench

RUN = TrackedRun(
    name="run-1",
    params={"lora": {"r": 16, "target_modules": ["q_proj"]}, "seed": 3},
    tags={"llmops.run": "run-1"},
    dataset_name="docs",
    dataset_digest="ab" * 32,
)


def test_mlflow_shows_parameters_curves_and_the_datas_digest(workspace: Workspace) -> None:
    tracker = start_tracking("mlflow", workspace, RUN)
    for step in range(1, 6):
        tracker.log_metrics({"loss": 1 / step, "learning_rate": 0.1 * step}, step)
    tracker.finish("FINISHED", {"llmops.adapter": "cd" * 32})
    client = MlflowClient(tracking_uri=workspace.mlflow_uri)
    found = client.get_run(tracker.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lora.r": "16", "lora.target_modules": '["q_proj"]', "seed": "3"}
    assert found.data.tags["llmops.adapter"] == "cd" * 32
    assert found.data.tags[DIGEST_TAG] == "ab" * 32
    curve = client.get_metric_history(tracker.run_id, "loss")
    assert [(m.step, m.value) for m in curve] == [(s, 1 / s) for s in range(1, 6)]
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("docs", "ab" * 6)
    assert client.get_experiment(found.info.experiment_id).name == workspace.config.name


def test_reports_figures_land_in_the_run_that_trained_the_adapter(workspace: Workspace) -> None:
    tracker = start_tracking("mlflow", workspace, RUN)
    tracker.finish("FINISHED")
    assert tracker.run_id
    log_report_metrics(workspace, tracker.run_id, {"docstrings/rougeL": 27.0})
    found = MlflowClient(tracking_uri=workspace.mlflow_uri).get_run(tracker.run_id)
    assert found.data.metrics == {"docstrings/rougeL": 27.0}
    assert found.info.status == "FINISHED"


def test_unknown_run_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="tracking run 0000"):
        log_report_metrics(workspace, "0" * 32, {"bleu": 1.0})


@pytest.mark.walk
def test_two_processes_may_be_the_first_to_open_the_database_at_once(workspace: Workspace) -> None:
    code = """
import sys
from pathlib import Path
from llmops.settings import find_workspace
from llmops.tracking import TrackedRun, start_tracking
tracker = start_tracking("mlflow", find_workspace(Path(sys.argv[1])), TrackedRun(sys.argv[2], {"a": 1}))
tracker.log_metrics({"loss": 1.0}, 1)
tracker.finish("FINISHED")
print(tracker.run_id)
"""
    command = [sys.executable, "-c", code, str(workspace.root)]
    started = [
        subprocess.Popen([*command, f"run-{i}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    said = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], [err[-2000:] for _, err in said]
    client = MlflowClient(tracking_uri=workspace.mlflow_uri)
    runs = [client.get_run(out.strip()) for out, _ in said]
    assert {run.info.run_name for run in runs} == {"run-0", "run-1"}
    assert len({run.info.experiment_id for run in runs}) == 1


def test_database_is_in_wal_mode_beside_ours(workspace: Workspace) -> None:
    start_tracking("mlflow", workspace, RUN).finish("FINISHED")
    with closing(sqlite3.connect(workspace.state / "mlflow.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not (workspace.root / "mlruns").exists()


def test_no_tracking_writes_no_database_and_loads_no_mlflow(workspace: Workspace) -> None:
    code = """
import sys
from pathlib import Path
from llmops.settings import find_workspace
from llmops.tracking import TrackedRun, start_tracking
tracker = start_tracking("none", find_workspace(Path(sys.argv[1])), TrackedRun("run", {}))
tracker.log_metrics({"loss": 1.0}, 1)
tracker.finish("FINISHED")
assert tracker.run_id is None
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(workspace.root)], check=True)
    assert not (workspace.state / "mlflow.db").exists()


def test_mlflow_that_is_not_installed_says_what_to_install(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="pip install mlflow-skinny"):
        start_tracking("mlflow", workspace, RUN)


def test_missing_tracker_stops_a_recipe_before_weights_load(
    workspace: Workspace, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    bench = Bench(workspace, tiny_model)
    bench.rows()
    with pytest.raises(ConfigError, match="pip install mlflow-skinny"):
        finetune(bench.recipe(tracking="mlflow"), workspace)


def test_finetune_shows_its_run_and_lineage_names_it(workspace: Workspace, tiny_model: Path) -> None:
    bench = Bench(workspace, tiny_model)
    bench.rows()
    record = finetune(bench.recipe(tracking="mlflow"), workspace)
    lineage = Registry.of(workspace).lineage(record)
    assert lineage.tracking_run
    client = MlflowClient(tracking_uri=workspace.mlflow_uri)
    found = client.get_run(lineage.tracking_run)
    assert found.info.status == "FINISHED"
    assert found.data.params["lora.r"] == "16"
    assert found.data.params["digests.base"] == record.base
    assert found.data.tags["llmops.adapter"] == record.adapter
    assert found.data.tags[DIGEST_TAG] == lineage.dataset
    (folder,) = workspace.runs.iterdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    written = [line["loss"] for line in lines if "elapsed_s" in line]
    shown = [m.value for m in client.get_metric_history(lineage.tracking_run, "loss")]
    assert shown == written
    assert found.data.metrics["effect_nats"] == lineage.metrics["effect_nats"]


@pytest.mark.walk
def test_failed_run_is_shown_as_failed(workspace: Workspace, tiny_model: Path) -> None:
    bench = Bench(workspace, tiny_model)
    bench.rows()
    with pytest.raises(TrainingFailed, match="has no effect"):
        finetune(bench.recipe(tracking="mlflow", n_steps=1, learning_rate=1e-12), workspace)
    client = MlflowClient(tracking_uri=workspace.mlflow_uri)
    experiment = client.get_experiment_by_name(workspace.config.name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.walk
def test_tracker_that_breaks_does_not_hide_why_the_run_failed(workspace: Workspace, tiny_model: Path) -> None:
    bench = Bench(workspace, tiny_model)
    bench.rows()

    def break_tracker(done: int, total: int, note: str) -> None:
        if note.startswith("probing"):
            with closing(sqlite3.connect(workspace.state / "mlflow.db")) as database:
                database.execute("DROP TABLE runs")  # whatever is still to be written, the end is
                database.commit()

    with pytest.raises(TrainingFailed, match="has no effect") as caught:
        finetune(bench.recipe(tracking="mlflow", n_steps=1, learning_rate=1e-12), workspace, break_tracker)
    assert any("tracker could not end its run" in note for note in caught.value.__notes__)
