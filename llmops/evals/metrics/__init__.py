"""Metrics of answers, and the right interval for each.

`METRICS` holds those that a suite names by one word; `config.py` spells the others. BLEU, chrF and TER are sacrebleu's
numbers, ROUGE is rouge_score's.
"""

from __future__ import annotations

from llmops.evals.metrics.checks import CHECKS
from llmops.evals.metrics.corpus import CORPUS
from llmops.evals.metrics.effort import EFFORT
from llmops.evals.metrics.json_output import JSON
from llmops.evals.metrics.likelihood import LIKELIHOOD
from llmops.evals.metrics.matching import MATCHING
from llmops.evals.metrics.metric import (
    Answer,
    Answers,
    Measured,
    Metric,
    Scores,
    difference,
    interval,
    score,
)
from llmops.evals.metrics.resampling import resample
from llmops.evals.metrics.rouge import ROUGE

METRICS: dict[str, Metric] = {
    **CORPUS, **ROUGE, **MATCHING, **CHECKS, **JSON, **LIKELIHOOD, **EFFORT
}  # fmt: skip

__all__ = [
    "METRICS", "Answer", "Answers", "Measured", "Metric", "Scores", "difference", "interval", "resample", "score",
]  # fmt: skip
