"""BLEU, chrF and TER: sacrebleu's numbers, kept as each case's sufficient statistics.

Shapes: N cases, S sufficient statistics, R rows scored together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from llmops.evals.metrics.metric import POINTS, Answers, Measured, Metric, n_references
from llmops.evals.metrics.spelling import MetricSettings
from llmops.schema import JsonDict
from llmops.stats import CorpusScore, FloatArray

EDITS = "edits per 100 words"


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
    """Corpus chrF2 or chrF2++ (character 1..6-grams, of chrF2++ also word 1..2-grams; effective order) of statistics.

    Args:
        summed: [R, 18] or [R, 24] for each order the n-grams of the completion, of the reference, and those matched.

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


def ter_from_stats(summed: FloatArray) -> FloatArray:
    """Translation edit rate of summed statistics, in edits per 100 reference words; more than 100 are possible.

    Args:
        summed: [R, 2] edits to the nearest reference, mean length of the references in words.

    Returns:
        [R] what sacrebleu's `TER` gives row by row.
    """
    edits, length = summed[:, 0], summed[:, 1]
    return 100 * np.where(length > 0, edits / np.where(length > 0, length, 1.0), np.sign(edits))


class _Sacrebleu(MetricSettings):
    """What the metrics of sacrebleu share."""

    lowercase: bool = False
    """Whether texts are compared in lower case."""
    resamples: int = Field(default=0, ge=0, le=1_000_000)
    """Intervals from this many bootstrap resamples; 0 takes the jackknife, which needs no seed and errs less near 0."""


class Bleu(_Sacrebleu):
    """Corpus BLEU."""

    kind: Literal["bleu"]
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"
    """sacrebleu's tokenizer: zh for Chinese, char or intl for other scripts."""

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder
        options = {"tokenize": self.tokenize, "lowercase": self.lowercase}
        return _metric(_Family("bleu", options), self.label, self.resamples)


class Chrf(_Sacrebleu):
    """Corpus chrF2, or chrF2++ with word n-grams."""

    kind: Literal["chrf"]
    word_order: Literal[0, 1, 2] = 0
    """Longest word n-grams beside those of characters; 2 is chrF++."""
    whitespace: bool = False
    """Whether white space counts as characters."""

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder
        options = {
            "word_order": self.word_order, "whitespace": self.whitespace, "lowercase": self.lowercase
        }  # fmt: skip
        return _metric(_Family("chrf", options), self.label, self.resamples)


class Ter(_Sacrebleu):
    """Translation edit rate; lower is better."""

    kind: Literal["ter"]
    lowercase: bool = True
    """Whether texts are compared in lower case, as Tercom does."""
    normalized: bool = False
    """Whether punctuation is split off words first."""
    punctuation: bool = True
    """Whether punctuation counts."""
    asian_support: bool = False
    """Whether Chinese, Japanese and Korean are split into characters; needs `normalized`, or `punctuation: false`."""

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder
        options = {
            "normalized": self.normalized, "no_punct": not self.punctuation, "asian_support": self.asian_support,
            "case_sensitive": not self.lowercase,
        }  # fmt: skip
        return _metric(_Family("ter", options), self.label, self.resamples)


@dataclass(frozen=True)
class _Family:
    """One of sacrebleu's metrics with its options."""

    kind: Literal["bleu", "chrf", "ter"]
    options: JsonDict = field(default_factory=dict)

    def scorer(self, per_sentence: bool = False) -> Any:
        """sacrebleu's own object; BLEU of one sentence leaves out orders without n-grams."""
        from sacrebleu.metrics import BLEU, CHRF, TER

        if self.kind == "bleu":
            return BLEU(effective_order=per_sentence, **self.options)
        return (CHRF if self.kind == "chrf" else TER)(**self.options)


def _metric(family: _Family, name: str, resamples: int = 0) -> Metric:
    return Metric(
        name,
        "corpus",
        partial(_measure, family),
        partial(_signature, family, resamples),
        RESAMPLED[family.kind],
        better="lower" if family.kind == "ter" else "higher",
        unit=EDITS if family.kind == "ter" else POINTS,
        resamples=resamples,
    )


def _measure(family: _Family, answers: Answers) -> Measured:
    """Corpus value and sentence scores through sacrebleu's own seam, where a missing reference is None.

    Of several samples a case's statistics are the mean, and so is its sentence score.
    """
    corpus, sentence = family.scorer(), family.scorer(per_sentence=True)
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
        value = float(RESAMPLED[family.kind](stats_n.sum(axis=0)[None])[0])
    return Measured(value, np.mean(np.array(scores, dtype=np.float64), axis=0), stats_n)


def _signature(family: _Family, resamples: int, answers: Answers) -> str:
    corpus = family.scorer()
    corpus.num_refs = n_references(answers) or -1
    label = {"bleu": "BLEU", "chrf": "chrF2" + "+" * family.options.get("word_order", 0), "ter": "TER"}
    interval = f"|interval:bootstrap-{resamples}" if resamples else ""
    return f"{label[family.kind]}|{corpus.get_signature()}{interval}"


RESAMPLED: dict[str, CorpusScore] = {"bleu": bleu_from_stats, "chrf": chrf_from_stats, "ter": ter_from_stats}
CORPUS: dict[str, Metric] = {
    "bleu": _metric(_Family("bleu"), "bleu"),
    "chrf": _metric(_Family("chrf"), "chrf"),
    "chrf++": _metric(_Family("chrf", {"word_order": 2}), "chrf++"),
    "ter": _metric(_Family("ter"), "ter"),
}
