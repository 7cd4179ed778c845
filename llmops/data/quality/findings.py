"""What a check hands on: the rows it found, by index, each with its reason and how bad it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Finding:
    """A row that a check found; `reason` reads `check: detail`, and a larger `weight` is worse."""

    index: int
    reason: str
    weight: float = 0.0


@dataclass(frozen=True)
class Found:
    """All that one check found, at most one finding a row, and what it measured over all rows."""

    findings: tuple[Finding, ...]
    distribution: dict[str, int | float] = field(default_factory=dict)
    not_checked: str | None = None


def spread(values: Sequence[int], unit: str) -> dict[str, int | float]:
    """Smallest, median, 95th and 99th percentile, largest and mean of some numbers, with their unit in the names.

    >>> spread([1, 2, 3], "words")["median_words"]
    2.0
    """
    if not values:
        return {}
    low, median, p95, p99, high = (float(q) for q in np.quantile(values, (0, 0.5, 0.95, 0.99, 1)))
    return {
        f"min_{unit}": int(low),
        f"median_{unit}": median,
        f"p95_{unit}": round(p95, 1),
        f"p99_{unit}": round(p99, 1),
        f"max_{unit}": int(high),
        f"mean_{unit}": round(float(np.mean(values)), 1),
    }
