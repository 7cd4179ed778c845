"""When an interval cannot hold its level, and why: a reason beside the numbers, on which nothing is decided.

No test of a mean holds its level for every distribution (Bahadur and Savage, Ann. Math. Stat. 27 (1956) 1115-1122): a
rare catastrophe that no case showed cannot be seen in the cases. What can be seen is refused here:

* all values equal: there is no variance, and zero width would be taken for certainty;
* fewer than 8 units (cases, clusters), or than 6 that differ from the most common value;
* an estimate whose own distribution is skewed by more than 0.22 (sample skewness / sqrt(n); less below 20 units,
  where skewness hides), which the correction in `llmops.stats.student` does not repair. Means and corpus metrics of 20
  units or more get Cantelli's bounds up to 0.4 (`is_wide`).

Binary outcomes (`llmops.stats.binary`) need fewer rules: none for a proportion, 12 pairs for a difference, 8 clusters,
3 raters. Nothing else about them breaks a level: no disagreement at all is an outcome like any other.
"""

from __future__ import annotations

MIN_UNITS = 8
"""Cases, or clusters of them, from which on bounds hold their level."""
MIN_DIFFERING = 6
"""Units that are not all of the most common value, from which on bounds hold their level."""
MIN_PAIRS = 12
"""Pairs of binary outcomes from which on the corrected score holds its level."""
MIN_RATERS = 3
"""People from whom on votes say something about people."""
MAX_SKEWNESS = 0.22
"""Most skewness of an estimate (that of a case / sqrt(n)) from 20 units on."""
WIDE_SKEWNESS = 0.4
"""Most skewness of an estimate up to which Cantelli's bounds hold their level (measured: tests/stats)."""


def student_doubt(se: float, skewness: float, n_units: int, n_differing: int | None) -> str | None:
    """The doubt about a Student interval.

    Args:
        se: standard error of the estimate.
        skewness: of the estimate's distribution.
        n_units: cases, or clusters of them.
        n_differing: units that do not have the most common value, where known.
    """
    if se == 0:
        return f"all {n_units} values are equal: their error cannot be estimated"
    few = units_doubt(n_units)
    if few is not None:
        return few
    if n_differing is not None and n_differing < MIN_DIFFERING:
        return f"{n_differing} of {n_units} values differ from the most common one: at least {MIN_DIFFERING} must"
    most = MAX_SKEWNESS * min(1.0, n_units / 20)
    if abs(skewness) > most:
        return (
            f"a few values decide (skewness of the estimate {skewness:+.2f}, at most {most:.2f}): add cases"
        )
    return None


def is_wide(skewness: float, n_units: int) -> bool:
    """Whether an estimate is too skewed for Student's bounds and not for Cantelli's, which are 2.6 times as wide."""
    return n_units >= 20 and MAX_SKEWNESS < abs(skewness) <= WIDE_SKEWNESS


def units_doubt(n_units: float, least: int = MIN_UNITS) -> str | None:
    """The doubt about an interval of few units, whatever their values.

    >>> units_doubt(3)
    '3 independent units are too few: at least 8 are needed'
    """
    if n_units < least:
        return f"{n_units:g} independent units are too few: at least {least} are needed"
    return None
