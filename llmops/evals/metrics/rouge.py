"""ROUGE: rouge_score's numbers, computed by rouge-score-rs where it is installed."""

from __future__ import annotations

from functools import partial
from importlib import metadata
from typing import Any

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


def _package() -> tuple[str, Any]:
    """The distribution that computes ROUGE here, and its scorer class."""
    try:
        from rouge_score_rs.rouge_scorer import RougeScorer
    except ImportError:
        from rouge_score.rouge_scorer import RougeScorer

        return "rouge-score", RougeScorer
    return "rouge-score-rs", RougeScorer


def _measure(name: str, answers: Answers) -> Measured:
    """F1 of the best reference, as rouge_score's `score_multi`; sentences of rougeLsum are lines."""
    _, scorer_class = _package()
    scorer = scorer_class([name], use_stemmer=False)
    references = references_of(answers)
    pairs = [
        (reference, text)
        for text, texts in zip(texts_of(answers), references, strict=True)
        for reference in texts
    ]
    if hasattr(scorer, "score_batch"):
        scored = scorer.score_batch([reference for reference, _ in pairs], [text for _, text in pairs])
    else:
        scored = [scorer.score(reference, text) for reference, text in pairs]
    f1 = np.array([100 * found[name].fmeasure for found in scored], dtype=np.float64)
    starts = np.cumsum([0, *map(len, references)])[:-1]
    return mean_of_samples(answers, np.maximum.reduceat(f1, starts))


def _signature(name: str, answers: Answers) -> str:
    package, _ = _package()
    split = "|sentences:lines" if name == "rougeLsum" else ""
    return (
        f"{name}|nrefs:{n_references(answers) or 'var'}|measure:f1|best:ref|stem:no|tok:a-z0-9{split}"
        f"|package:{package}|version:{metadata.version(package)}"
    )


ROUGE: dict[str, Metric] = {
    name: Metric(name, "mean", partial(_measure, name), partial(_signature, name))
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")
}
