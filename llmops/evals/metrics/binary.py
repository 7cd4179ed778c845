"""Yes-or-no metrics: 100 where something holds of an answer, else 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmops.errors import DataError
from llmops.evals.metrics.metric import Answers, Measured, Metric, mean_of_samples
from llmops.records import Case, Completion

Holds = Callable[[Case, Completion], bool]
"""What is asked of one answer to a case; DataError where the case asks for nothing that can be held against it."""
_SILENCE = Completion("", "", "answered", "", "stop", 0, 0, 0.0, None, None)


def binary_metric(name: str, holds: Holds, settings: str, digest: str = "") -> Metric:
    """The metric; `settings` is all of its signature but the version, `digest` that of a file it reads."""

    def measure(answers: Answers) -> Measured:
        hits = [holds(answer.case, sample) for answer in answers for sample in answer.samples]
        return mean_of_samples(answers, 100 * np.array(hits, dtype=np.float64))

    return Metric(
        name,
        "binary",
        measure,
        lambda _: f"{settings}|version:1",
        needs_references=False,
        digest=digest,
        check_case=lambda case: holds(case, _SILENCE),
    )


def need(case: Case, metric: str, *keys: str) -> None:
    """Make sure that a case says in `expected` what a metric reads.

    Raises:
        DataError: it does not.
    """
    missing = next((key for key in keys if key not in case.expected), None)
    if missing is not None:
        raise DataError(
            f"case {case.source} has no expected.{missing}, and {metric} needs it; give it one, or use the metric "
            "`expected`, which asks of each case what it has"
        )
