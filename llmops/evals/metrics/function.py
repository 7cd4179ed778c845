"""A user's own metric: `file.py::name`, a function of an answer's text and its case.

The file is run by path, and its bytes are part of the suite's digest. What fails or gives no number stops scoring with
the file, the case and the function's own words: a fault of the metric is never a score of 0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from llmops.data.builder import load_function
from llmops.errors import ConfigError, DataError
from llmops.evals.metrics.metric import POINTS, Answers, Measured, Metric, mean_of_samples
from llmops.evals.metrics.spelling import MetricSettings, file_of
from llmops.records import Better, Case, Completion
from llmops.schema import short


class Function(MetricSettings):
    """What a function of yours says of each answer: `name(completion: str, case: Case) -> float`."""

    kind: Literal["function"]
    function: str = Field(pattern=r"^.+\.py::[A-Za-z_]\w*$")
    """`file.py::name`, relative to the suite's file."""
    better: Better = "higher"
    """Which way it improves."""
    unit: str = Field(default="score", min_length=1, max_length=40)
    """What its numbers are; `points` must lie between 0 and 100."""
    yes_or_no: bool = False
    """Whether it gives True or False, reported as the share of True in points."""
    references: bool = False
    """Whether every case must have a reference."""

    @model_validator(mode="after")
    def _one_unit(self) -> Function:
        if self.yes_or_no and self.unit not in ("score", POINTS):
            raise ValueError(
                f"unit {self.unit!r} does not go with yes_or_no, which is in points; leave it out"
            )
        return self

    @property
    def usual_name(self) -> str:
        """The function's name."""
        return self.function.rpartition("::")[2].strip("_") or "function"

    def metric(self, folder: Path) -> Metric:
        """The metric, its file run.

        Raises:
            ConfigError: the file is missing or does not load, or the function cannot be called with two arguments.
        """
        file, _, name = self.function.rpartition("::")
        path, digest = file_of(folder, file, "Python file")
        function = load_function(path, name, "function")
        try:
            inspect.signature(function).bind("", None)
        except TypeError:
            raise ConfigError(
                f"{path}: {name}{inspect.signature(function)} cannot be called; write {name}(completion, case)"
            ) from None
        unit = POINTS if self.yes_or_no else self.unit
        call = _Call(f"{path}::{name}", function, self.yes_or_no, unit == POINTS)
        return Metric(
            self.label,
            "binary" if self.yes_or_no else "mean",
            call.measure,
            lambda _: f"function:{name}|file:{short(digest)}|version:1",
            better=self.better,
            unit=unit,
            needs_references=self.references,
            digest=digest,
        )


class _Call:
    """Calls the function for every sample and checks what it gives."""

    def __init__(self, where: str, function: Callable[..., Any], yes_or_no: bool, in_points: bool) -> None:
        self._where = where
        self._function = function
        self._yes_or_no = yes_or_no
        self._in_points = in_points

    def measure(self, answers: Answers) -> Measured:
        """Its numbers of all samples; DataError names the case where it gives none."""
        values = [self._one(answer.case, sample) for answer in answers for sample in answer.samples]
        return mean_of_samples(answers, np.array(values, dtype=np.float64))

    def _one(self, case: Case, sample: Completion) -> float:
        where = f"{self._where}: case {case.source}"
        try:
            value = self._function(sample.text, case)
        except Exception as error:  # a user's code may raise anything; its own words are the message
            raise DataError(
                f"{where}: failed ({type(error).__name__}: {error}) on the answer {sample.text[:80]!r}; "
                "mend the function"
            ) from error
        found = self._number(value)
        if found is None:
            what = "True or False" if self._yes_or_no else "a finite number"
            what += " from 0 to 100" if self._in_points and not self._yes_or_no else ""
            raise DataError(f"{where}: gave {value!r} for the answer {sample.text[:80]!r}; return {what}")
        return found

    def _number(self, value: object) -> float | None:
        """The number it stands for; None when it is none that may be."""
        if isinstance(value, np.generic):
            value = value.item()
        if self._yes_or_no:
            return 100.0 * value if isinstance(value, bool) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return None if self._in_points and not 0 <= value <= 100 else float(value)
