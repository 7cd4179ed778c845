"""Metrics that compare an answer's text with its references word by word or whole."""

from __future__ import annotations

import numpy as np

from llmops.evals.metrics.metric import (
    Answers,
    Measured,
    Metric,
    mean_of_samples,
    n_references,
    references_of,
    texts_of,
)


def _exact_match(answers: Answers) -> Measured:
    """100 where the answer equals one of the references, both without outer whitespace, else 0."""
    hits = [
        text.strip() in {reference.strip() for reference in texts}
        for text, texts in zip(texts_of(answers), references_of(answers), strict=True)
    ]
    return mean_of_samples(answers, 100 * np.array(hits, dtype=np.float64))


def _exact_match_signature(answers: Answers) -> str:
    return f"exact_match|nrefs:{n_references(answers) or 'var'}|case:mixed|strip:yes|version:1"


MATCHING: dict[str, Metric] = {
    "exact_match": Metric("exact_match", "binary", _exact_match, _exact_match_signature),
}
