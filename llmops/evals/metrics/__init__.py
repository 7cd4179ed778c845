"""Metrics of answers, and the right interval for each.

`METRICS` holds those that a suite names by one word; `config.py` spells the others. BLEU and chrF are sacrebleu's,
ROUGE is rouge-score's numbers.
"""

from __future__ import annotations

from llmops.evals.metrics.corpus import CORPUS
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
from llmops.evals.metrics.rouge import ROUGE

METRICS: dict[str, Metric] = {**CORPUS, **ROUGE, **MATCHING}

__all__ = ["METRICS", "Answer", "Answers", "Measured", "Metric", "Scores", "difference", "interval", "score"]
