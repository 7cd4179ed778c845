"""What all metrics that a suite spells as a mapping have in common; each family's settings lie beside its metric."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from llmops.errors import ConfigError
from llmops.evals.metrics.metric import Metric


class MetricSettings(BaseModel, ABC):
    """A metric as a suite spells it; subclasses are told apart by `kind`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_+.-]{0,62})?$")
    """What reports and gates call it; its kind when left out."""

    @property
    def label(self) -> str:
        """Its name, or what it is called without one."""
        return self.name or self.usual_name

    @property
    def usual_name(self) -> str:
        """What it is called when its settings do not say."""
        return str(getattr(self, "kind", ""))

    @abstractmethod
    def metric(self, folder: Path) -> Metric:
        """The metric; files that it names are relative to `folder`, that of the suite.

        Raises:
            ConfigError: a file is missing or does not say what it must.
        """


def file_of(folder: Path, name: str, what: str) -> tuple[Path, str]:
    """A file that a metric reads, with its digest.

    Args:
        folder: that of the suite.
        name: the path as the suite spells it.
        what: what the file is, for the message.

    Raises:
        ConfigError: it is not there.
    """
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{path}: no such {what}; correct the path, which is relative to the suite's file")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()
