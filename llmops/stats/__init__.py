"""Intervals, paired comparisons and sample sizes: what a release gate decides by.

Every interval has two one-sided bounds: `level=0.95` means that each bound is wrong for at most 5 % of samples, so
the pair is a two-sided 90 % interval. A difference is candidate minus baseline (`b - a`) over the same cases in the
same order. Cases are independent, or fall into `clusters`, which then are the units. Where bounds cannot be trusted to
hold their level the interval says so (`doubt`), and nothing is decided on it. Nothing here reads or writes anything.

Shapes: N cases, G clusters, S statistics, R rows that are scored together.
"""

from __future__ import annotations

from llmops.stats.binary import paired_binary, proportion_interval
from llmops.stats.corpus import corpus_interval, paired_corpus
from llmops.stats.guard import unreliable
from llmops.stats.interval import BoundVerdict, CorpusScore, FloatArray, Interval, Labels, decide_bound
from llmops.stats.means import mean_interval, paired_t
from llmops.stats.planning import n_needed

__all__ = [
    "BoundVerdict",
    "CorpusScore",
    "FloatArray",
    "Interval",
    "Labels",
    "corpus_interval",
    "decide_bound",
    "mean_interval",
    "n_needed",
    "paired_binary",
    "paired_corpus",
    "paired_t",
    "proportion_interval",
    "unreliable",
]
