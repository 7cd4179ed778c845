"""BLEU and chrF: sacrebleu's numbers, kept as each case's sufficient statistics.

Shapes: N cases, S sufficient statistics, R rows scored together.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from llmops.evals.metrics.metric import Answers, Measured, Metric, n_references
from llmops.stats import CorpusScore, FloatArray


def _metric(name: str, resampled: CorpusScore) -> Metric:
    return Metric(name, "corpus", partial(_measure, name), partial(_signature, name), resampled)


def bleu_from_stats(summed: FloatArray) -> FloatArray:
    """Corpus BLEU (exponential smoothing, order 4) of summed statistics.

    Args:
        summed: [R, 10] completion tokens, reference tokens, matched 1..4-grams, counted 1..4-grams.

    Returns:
        [R] what sacrebleu's `BLEU.compute_bleu` gives row by row.
    """
    n_tokens, n_reference_tokens = summed[:, 0], summed[:, 1]
    matched, counted = summed[:, 2:6], summed[:, 6:10]
    scorable = (matched.sum(axis=1) > 0) & (counted.min(axis=1) > 0)
    smoothed = 1 / 2.0 ** np.cumsum(matched == 0, axis=1)
    precision = np.where(matched > 0, matched, smoothed) / np.maximum(counted, 1)
    ratio = n_reference_tokens / np.maximum(n_tokens, 1)
    brevity = np.exp(np.minimum(0.0, 1 - ratio))
    return np.where(scorable, 100 * brevity * np.exp(np.log(precision).mean(axis=1)), 0.0)


def chrf_from_stats(summed: FloatArray) -> FloatArray:
    """Corpus chrF2 (character 1..6-grams, effective order) of summed statistics.

    Args:
        summed: [R, 18] for each order the n-grams of the completion, of the reference, and those matched.

    Returns:
        [R] what sacrebleu's `CHRF` gives row by row.
    """
    hypothesis, reference, matched = np.moveaxis(summed.reshape(len(summed), -1, 3), 2, 0)
    seen = (hypothesis > 0) & (reference > 0)
    n_orders = np.maximum(seen.sum(axis=1), 1)
    precision = np.where(seen, matched / np.maximum(hypothesis, 1), 0.0).sum(axis=1) / n_orders
    recall = np.where(seen, matched / np.maximum(reference, 1), 0.0).sum(axis=1) / n_orders
    f_score: FloatArray = 500 * precision * recall / np.where(precision > 0, 4 * precision + recall, 1.0)
    return f_score


def _sacrebleu(name: str, per_sentence: bool = False) -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    return CHRF() if name == "chrf" else BLEU(effective_order=per_sentence)


def _measure(name: str, answers: Answers) -> Measured:
    """Corpus value and sentence scores through sacrebleu's own seam, where a missing reference is None.

    Of several samples a case's statistics are the mean, and so is its sentence score.
    """
    corpus, sentence = _sacrebleu(name), _sacrebleu(name, per_sentence=True)
    width = max(len(answer.case.references) for answer in answers)
    rows, scores = [], []
    for k in range(len(answers[0].samples)):
        texts = [answer.samples[k].text for answer in answers]
        streams = [
            [refs[i] if i < len(refs) else None for refs in (answer.case.references for answer in answers)]
            for i in range(width)
        ]
        found = corpus._extract_corpus_statistics(texts, streams)
        rows.append(found)
        scores.append([sentence._aggregate_and_compute([row]).score for row in found])
    stats_n = np.mean(np.array(rows, dtype=np.float64), axis=0)
    if len(rows) == 1:
        value = float(corpus._aggregate_and_compute(rows[0]).score)
    else:
        value = float(RESAMPLED[name](stats_n.sum(axis=0)[None])[0])
    return Measured(value, np.mean(np.array(scores, dtype=np.float64), axis=0), stats_n)


def _signature(name: str, answers: Answers) -> str:
    corpus = _sacrebleu(name)
    corpus.num_refs = n_references(answers) or -1
    label = "chrF2" if name == "chrf" else "BLEU"
    return f"{label}|{corpus.get_signature()}"


RESAMPLED: dict[str, CorpusScore] = {"bleu": bleu_from_stats, "chrf": chrf_from_stats}
CORPUS: dict[str, Metric] = {name: _metric(name, resampled) for name, resampled in RESAMPLED.items()}
