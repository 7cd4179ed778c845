"""Where things are: the workspace, its state folders, the cache of base models, and the environment variables read.

The nearest `llmops.yaml` at or above the current folder marks the workspace (`LLMOPS_WORKSPACE` overrides). State lies
under `.llmops/`: `llmops.db`, `mlflow.db`, `store/`, `runs/`, `logs/`; `LLMOPS_DATABASE_URL` and `LLMOPS_STORE_URL` put
database and store where several machines share them. Base models are large and shared between
workspaces: they lie under `LLMOPS_CACHE` (default `~/.cache/llmops`).
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from llmops.errors import BadRequest, ConfigError
from llmops.explain import explain

MARKER = "llmops.yaml"
RUN_LOCK = "lock"
"""File in a run's folder that whoever works on the run holds; the kernel takes it back however the process ends."""
RUN_SCRATCH = ("adapter", "trainer")
"""Folders of a run that are removed when it ends; logs and metrics stay."""

C = TypeVar("C", bound=BaseModel)


class WorkspaceConfig(BaseModel):
    """What `llmops.yaml` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "llmops"
    """Shown in status and as the experiment's name in the tracker."""
    tracking: Literal["mlflow", "none"] = "none"
    """Tracker of runs whose recipe does not name one."""


@dataclass(frozen=True)
class Workspace:
    """A folder with `llmops.yaml` in it, and the paths of its state."""

    root: Path
    config: WorkspaceConfig

    @property
    def state(self) -> Path:
        """`.llmops/`, made on first use."""
        path = self.root / ".llmops"
        path.mkdir(exist_ok=True)
        return path

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the ledger's database, with its password: `LLMOPS_DATABASE_URL`, else the workspace's file.

        Raises:
            ConfigError: the variable names no database that can be used.
        """
        given = os.environ.get("LLMOPS_DATABASE_URL")
        return _usable_database(given) if given else f"sqlite:///{self.state / 'llmops.db'}"

    @property
    def store_root(self) -> Path:
        """Root of the content-addressed store, or of its cache when there is a `store_url`."""
        return self.state / "store"

    @property
    def store_url(self) -> str | None:
        """fsspec URL of a shared store (`LLMOPS_STORE_URL`, for example s3://bucket/prefix); None: the folder alone."""
        return os.environ.get("LLMOPS_STORE_URL") or None

    @property
    def runs(self) -> Path:
        """Folder of training and evaluation runs in progress, one folder each."""
        return self.state / "runs"

    @property
    def suites(self) -> Path:
        """Folder of the suites whose cases training rows must not hold."""
        return self.root / "evals" / "suites"

    @property
    def gates(self) -> Path:
        """Folder of the gates that `llmops eval` declares before it asks anything."""
        return self.root / "evals" / "gates"

    @property
    def logs(self) -> Path:
        """Folder of the gateway's request log and the engines' output."""
        return self.state / "logs"

    @property
    def mlflow_uri(self) -> str:
        """Tracking URI of the workspace's own MLflow database."""
        return f"sqlite:///{self.state / 'mlflow.db'}"

    @property
    def serve_file(self) -> Path:
        """What a running `llmops serve` says of itself: pid, address, engine signature (JSON)."""
        return self.state / "serve.json"


def api_key() -> str | None:
    """The key of whoever runs this, for an `llmops serve` with keys: `LLMOPS_API_KEY`."""
    return os.environ.get("LLMOPS_API_KEY") or None


def api_headers() -> dict[str, str]:
    """What a request to an `llmops serve` with keys must carry; nothing without a key."""
    key = api_key()
    return {"Authorization": f"Bearer {key}"} if key else {}


def find_workspace(start: Path | None = None) -> Workspace:
    """The workspace at or above `start` (default: `LLMOPS_WORKSPACE`, else the current folder).

    Raises:
        BadRequest: no `llmops.yaml` there.
        ConfigError: `llmops.yaml` does not parse.
    """
    override = os.environ.get("LLMOPS_WORKSPACE")
    origin = (start or Path(override or ".")).resolve()
    for folder in (origin, *origin.parents):
        marker = folder / MARKER
        if marker.is_file():
            return Workspace(folder, load_yaml(marker, WorkspaceConfig))
    raise BadRequest(
        f"{origin}: no {MARKER} here or above; change into a workspace, or create one with that file"
    )


def cache_root() -> Path:
    """Folder of base models shared by all workspaces; made on first use."""
    path = Path(os.environ.get("LLMOPS_CACHE") or Path.home() / ".cache" / "llmops")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _usable_database(given: str) -> str:
    """The URL in the form SQLAlchemy takes; messages never show it, it may hold a password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    advice = "give postgresql://user:password@host/name, or sqlite:////folder/name.db"
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise ConfigError(f"LLMOPS_DATABASE_URL: is not the URL of a database; {advice}") from None
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ConfigError(f"LLMOPS_DATABASE_URL: {backend}:// cannot be used; {advice}")
    if backend == "sqlite" and not Path(url.database or "").is_absolute():
        raise ConfigError(f"LLMOPS_DATABASE_URL: {url.database or 'no file'} is no absolute path; {advice}")
    driver = "postgresql+psycopg" if backend == "postgresql" else "sqlite"
    return url.set(drivername=driver).render_as_string(hide_password=False)


def now() -> str:
    """The current time as RFC 3339 in UTC with milliseconds, the form every record carries."""
    return stamp(datetime.now(UTC))


def stamp(moment: datetime) -> str:
    """A moment (in UTC) in the form of `now`."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def load_yaml(path: Path, model: type[C], overrides: tuple[tuple[str, object], ...] = ()) -> C:
    """The config of class `model` in a YAML file.

    Args:
        path: the file.
        model: what its settings must be.
        overrides: dotted names of settings with the values that replace the file's; the last of a name counts.

    Raises:
        ConfigError: the file is missing, is not YAML, or has a wrong or unknown setting (named with its line of the
            tree, its value, and the nearest known name).
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{line}: not YAML ({getattr(error, 'problem', error)}); mend the file"
        ) from None
    if data is None:
        raise ConfigError(f"{path}: is empty; write `name: value` lines")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {type(data).__name__}, not settings; write `name: value` lines")
    for name, value in overrides:
        _override(data, name, value, path)
    said = "".join(f" --set {name}={value}" for name, value in overrides)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path}{said}: {explain(error, model, data)}") from None


def _override(data: dict[str, object], name: str, value: object, path: Path) -> None:
    *folders, last = name.split(".")
    inner = data
    for folder in folders:
        found = inner.setdefault(folder, {})
        if not isinstance(found, dict):
            raise ConfigError(
                f"{path}: --set {name}: {folder} is {found!r}, not a group of settings; correct the name"
            )
        inner = found
    inner[last] = value


class _OnceLoader(yaml.SafeLoader):
    """Reads plain values, and refuses a name that is given twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping, if all its names differ."""
        seen: set[str] = set()
        for key, _ in node.value:
            if (
                isinstance(key, yaml.ScalarNode)
                and key.value in seen
                and key.tag != "tag:yaml.org,2002:merge"
            ):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is given twice, keep one", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)
