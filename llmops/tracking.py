"""Showing runs in a tracker: parameters, curves and the data's digest. MLflow, or nowhere.

A tracker shows; it decides nothing (that is the ledger's). MLflow writes to a database of its own under the workspace
(`mlflow.db`, SQLite in WAL mode), never to a server, and its telemetry is off.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from llmops.errors import ConfigError
from llmops.schema import JsonDict, canonical_json, short
from llmops.settings import Workspace

FLUSH_EVERY_S = 1.0
MAX_PARAM_CHARS = 6000  # of a value; MLflow refuses longer ones
DIGEST_TAG = "llmops.dataset_digest"  # MLflow's own field holds 36 characters, fewer than a digest has

Outcome = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class TrackedRun:
    """What a run is called in a tracker, and what it was made from; `params` may be nested.

    `goes_on` is the tracker's own id of a run that was begun before and is gone on with.
    """

    name: str
    params: JsonDict
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset_name: str | None = None
    dataset_digest: str | None = None
    goes_on: str | None = None


class Tracker(Protocol):
    """A run being shown somewhere."""

    @property
    def run_id(self) -> str | None:
        """The tracker's own id of the run; None when it is shown nowhere."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Show one point of each curve."""

    def finish(self, outcome: Outcome, tags: Mapping[str, str] | None = None) -> None:
        """End the run, with what it came to as tags."""


class NoTracker:
    """Shows a run nowhere; the run's own metrics.jsonl has all of it."""

    run_id: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Show nothing."""

    def finish(self, outcome: Outcome, tags: Mapping[str, str] | None = None) -> None:
        """Do nothing."""


class MlflowTracker:
    """Shows a run in the workspace's MLflow database. Points are written at most once a second, and at the end."""

    run_id: str | None

    def __init__(self, workspace: Workspace, run: TrackedRun) -> None:
        """Create the run with its parameters, tags and dataset; one that goes on is opened again if it is there.

        Raises:
            ConfigError: MLflow is not installed.
        """
        self._client, experiment = _open(workspace)
        self.run_id = _reopen(self._client, run.goes_on) or self._create(experiment, run)
        self._waiting: list[Any] = []
        self._written_at = time.monotonic()

    def _create(self, experiment: str, run: TrackedRun) -> str:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        tags = dict(run.tags)
        if run.dataset_digest:
            tags[DIGEST_TAG] = run.dataset_digest
        created = self._client.create_run(experiment, run_name=run.name, tags=tags)
        run_id = str(created.info.run_id)
        params = [Param(name, value[:MAX_PARAM_CHARS]) for name, value in flatten(run.params).items()]
        self._client.log_batch(run_id, params=params)
        if run.dataset_digest:
            name = run.dataset_name or "data"
            dataset = Dataset(name, short(run.dataset_digest), "llmops", f"dataset {run.dataset_digest}")
            training = [InputTag("mlflow.data.context", "training")]
            self._client.log_inputs(run_id, datasets=[DatasetInput(dataset, training)])
        return run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Show one point of each curve."""
        self._waiting += _points(metrics, step)
        if time.monotonic() - self._written_at >= FLUSH_EVERY_S:
            self._flush()

    def finish(self, outcome: Outcome, tags: Mapping[str, str] | None = None) -> None:
        """Write what waits and end the run, with what it came to as tags."""
        self._flush()
        for name, value in (tags or {}).items():
            self._client.set_tag(self.run_id, name, value)
        self._client.set_terminated(self.run_id, outcome)

    def _flush(self) -> None:
        if self._waiting:
            self._client.log_batch(self.run_id, metrics=self._waiting)
        self._waiting, self._written_at = [], time.monotonic()


def _reopen(client: Any, run_id: str | None) -> str | None:
    """The id of a run that is shown as running again; None when MLflow does not know it."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException:
        return None
    return run_id


def tag_run(workspace: Workspace, run_id: str, tags: Mapping[str, str]) -> None:
    """Put tags on a run of the workspace's MLflow database, by its tracker's id."""
    client, _ = _open(workspace)
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


def start_tracking(kind: Literal["mlflow", "none"], workspace: Workspace, run: TrackedRun) -> Tracker:
    """Begin to show a run.

    Raises:
        ConfigError: `mlflow` is asked for and not installed.
    """
    return MlflowTracker(workspace, run) if kind == "mlflow" else NoTracker()


def require_tracker(kind: Literal["mlflow", "none"]) -> None:
    """Refuse a tracker that is not installed, without starting anything.

    Raises:
        ConfigError: says what to install.
    """
    if kind == "mlflow":
        _import_mlflow()


def log_report_metrics(workspace: Workspace, run_id: str, metrics: Mapping[str, float]) -> None:
    """Add an evaluation's figures to the run that trained the adapter.

    Args:
        workspace: holds the tracker's database.
        run_id: `Lineage.tracking_run`.
        metrics: by name; MLflow takes letters, digits, `_ - . / :` and spaces.

    Raises:
        ConfigError: MLflow is not installed, or knows no such run.
    """
    from mlflow.exceptions import MlflowException

    client, _ = _open(workspace)
    try:
        client.log_batch(run_id, metrics=_points(metrics, 0))
    except MlflowException as error:
        raise ConfigError(
            f"tracking run {run_id}: {error.message}; is {workspace.mlflow_uri} the right database?"
        ) from error


def flatten(params: JsonDict, prefix: str = "") -> dict[str, str]:
    """Nested values as dotted names and text; lists as JSON.

    >>> flatten({"lora": {"r": 16}, "name": "a", "paths": ["x"]})
    {'lora.r': '16', 'name': 'a', 'paths': '["x"]'}
    """
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else canonical_json(value).decode()
    return flat


def _points(metrics: Mapping[str, float], step: int) -> list[Any]:
    from mlflow.entities import Metric

    at_ms = int(time.time() * 1000)
    return [Metric(name, float(value), at_ms, step) for name, value in metrics.items()]


def _import_mlflow() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        import mlflow
    except ImportError:
        raise ConfigError(
            "tracking: mlflow is asked for and not installed; pip install mlflow-skinny==3.17.2, or set tracking: none"
        ) from None
    return mlflow


def _open(workspace: Workspace) -> tuple[Any, str]:
    """A client of the workspace's database, which is made if it is not there, and the id of its experiment.

    Two processes that make MLflow's database at once crash in its migrations, so opening holds a file lock.
    """
    from filelock import FileLock

    mlflow = _import_mlflow()
    path = workspace.state / "mlflow.db"
    with FileLock(f"{path}.lock", timeout=120), _quiet_migrations():
        client = mlflow.MlflowClient(tracking_uri=workspace.mlflow_uri)
        found = client.get_experiment_by_name(workspace.config.name)
        experiment = found.experiment_id if found else client.create_experiment(workspace.config.name)
        with closing(sqlite3.connect(path, timeout=10)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # kept in the file
    return client, str(experiment)


@contextmanager
def _quiet_migrations() -> Iterator[None]:
    """Keep MLflow's log of making its tables out of ours."""
    names = ("alembic", "mlflow.store.db.utils")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
