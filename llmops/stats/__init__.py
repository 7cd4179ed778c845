"""Intervals, paired comparisons and sample sizes: what a release gate decides by.

Every interval has two one-sided bounds: `level=0.95` means that each bound is wrong for at most 5 % of samples, so
the pair is a two-sided 90 % interval. A difference is candidate minus baseline (`b - a`) over the same cases in the
same order. Cases are independent, or fall into `clusters`, which then are the units. Where bounds cannot be trusted to
hold their level the interval says so (`doubt`), and nothing is decided on it. Nothing here reads or writes anything.

Shapes: N cases, G clusters, S statistics, R rows that are scored together.
"""

from __future__ import annotations

from llmops.stats.binary import paired_binary, proportion_interval
from llmops.stats.bounded import paired_bounded
from llmops.stats.corpus import corpus_interval, paired_corpus
from llmops.stats.gaps import Gap, largest_gap
from llmops.stats.interval import BoundVerdict, CorpusScore, FloatArray, Interval, Labels, decide_bound
from llmops.stats.looks import Spending, look_level
from llmops.stats.means import mean_interval, paired_t
from llmops.stats.multiplicity import benjamini_hochberg, holm, p_value
from llmops.stats.planning import (
    Plan,
    binary_plan,
    mean_plan,
    n_for_power,
    n_needed,
    power_at,
    vote_plan,
)
from llmops.stats.wins import win_rate

__all__ = [
    "BoundVerdict",
    "CorpusScore",
    "FloatArray",
    "Gap",
    "Interval",
    "Labels",
    "Plan",
    "Spending",
    "benjamini_hochberg",
    "binary_plan",
    "corpus_interval",
    "decide_bound",
    "holm",
    "largest_gap",
    "look_level",
    "mean_interval",
    "mean_plan",
    "n_for_power",
    "n_needed",
    "p_value",
    "paired_binary",
    "paired_bounded",
    "paired_corpus",
    "paired_t",
    "power_at",
    "proportion_interval",
    "vote_plan",
    "win_rate",
]
