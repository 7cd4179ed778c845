"""Metrics of completions against references, and the right interval for each.

BLEU and chrF are sacrebleu's, ROUGE is rouge-score's numbers (computed by rouge-score-rs where it is
installed). What is ours: keeping each case's sufficient statistics, so that `llmops.stats` can compare two
systems without scoring text again. Every metric is on a 0-100 scale, higher is better. Nothing here reads or
writes files or knows of engines.

Shapes: N cases, S sufficient statistics, R rows scored together.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, Literal, TypeAlias

import numpy as np

from llmops import stats
from llmops.errors import BadRequest, DataError, InvalidEvidence
from llmops.stats import CorpusScore, FloatArray, Interval

Kind = Literal["corpus", "mean", "binary"]
Completions: TypeAlias = Sequence[str]
References: TypeAlias = Sequence[Sequence[str]]
"""For each case its references, one or more; an empty string is a reference, an empty list is not allowed."""


@dataclass(frozen=True, eq=False)
class Scores:
    """One metric of one system on N cases.

    `value` is the number to report. `per_case` [N] is each case's own score: for `mean` and `binary` metrics
    (0 or 100) its mean is `value`; for `corpus` metrics it is the sentence-level score, for display only, and
    `stats` [N, S] holds what `value` is made of.
    """

    metric: str
    kind: Kind
    value: float
    per_case: FloatArray
    stats: FloatArray | None
    signature: str


@dataclass(frozen=True)
class Metric:
    """A way to score completions.

    `measure` gives (value, per_case [N], stats [N, S] or None); `resampled` maps summed stats [R, S] to
    values [R] and belongs to corpus metrics alone. `signature` names all that could change the number. Values lie
    between 0 and 100 and higher is better: gates and plots rely on it.
    """

    name: str
    kind: Kind
    measure: Callable[[Completions, References], tuple[float, FloatArray, FloatArray | None]]
    signature: Callable[[References], str]
    resampled: CorpusScore | None = None


def score(metric_names: Iterable[str], completions: Completions, references: References) -> dict[str, Scores]:
    """Scores of each named metric, in the order named.

    Args:
        metric_names: keys of METRICS.
        completions: N texts; an empty one scores, it is not an error.
        references: for each of the N cases one reference or more.

    Raises:
        BadRequest: a name that is no metric.
        DataError: nothing to score, or a case without a reference (every score of it would be made up).
        InvalidEvidence: completions and references differ in number.

    >>> score(["exact_match"], ["Paris", "Rome "], [["Paris"], ["Roma", "Rome"]])["exact_match"].value
    100.0
    """
    _check_cases(completions, references)
    return {name: _score_one(_metric(name), completions, references) for name in metric_names}


def interval(scores: Scores, level: float = 0.95) -> Interval:
    """The interval of one system's value; `level` is that of each bound (0.95: a two-sided 90 % interval).

    Raises:
        InvalidEvidence: fewer than 2 cases.
    """
    metric = _metric(scores.metric)
    if metric.kind == "mean":
        return stats.mean_interval(scores.per_case, level)
    if metric.kind == "binary":
        return stats.proportion_interval(scores.per_case / 100, level).scaled(100)
    stats_n, resampled = _corpus_parts(metric, scores)
    return stats.corpus_interval(stats_n, resampled, level)


def difference(a: Scores, b: Scores, level: float = 0.95) -> Interval:
    """The interval of b - a over the same cases in the same order, by the test that fits the metric's kind.

    Args:
        a: the baseline's scores.
        b: the candidate's scores.
        level: confidence of each bound; 0.95 decides a one-sided test at 5 %.

    Raises:
        InvalidEvidence: two metrics, two signatures or two numbers of cases: the numbers are not comparable.
    """
    if (a.metric, a.signature) != (b.metric, b.signature):
        raise InvalidEvidence(
            f"difference: {a.metric} ({a.signature}) and {b.metric} ({b.signature}) are not comparable; "
            "score both systems with the same metric and versions"
        )
    metric = _metric(a.metric)
    if metric.kind == "mean":
        return stats.paired_t(a.per_case, b.per_case, level)
    if metric.kind == "binary":
        return stats.paired_binary(a.per_case / 100, b.per_case / 100, level).scaled(100)
    stats_a, resampled = _corpus_parts(metric, a)
    stats_b, _ = _corpus_parts(metric, b)
    return stats.paired_corpus(stats_a, stats_b, resampled, level)


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


def _check_cases(completions: Completions, references: References) -> None:
    if len(completions) != len(references):
        raise InvalidEvidence(
            f"score: {len(completions)} completions for {len(references)} cases; score answered cases alone"
        )
    if not completions:
        raise DataError("score: 0 completions have no score; evaluate at least one case")
    bare = next((i for i, texts in enumerate(references) if not texts), None)
    if bare is not None:
        raise DataError(f"score: case {bare} has no reference; give it one or leave the case out")


def _metric(name: str) -> Metric:
    if name in METRICS:
        return METRICS[name]
    close = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(METRICS)}"
    raise BadRequest(f"metrics: {name!r} is not a metric; {hint}")


def _score_one(metric: Metric, completions: Completions, references: References) -> Scores:
    value, per_case, stats_n = metric.measure(completions, references)
    return Scores(metric.name, metric.kind, value, per_case, stats_n, metric.signature(references))


def _corpus_parts(metric: Metric, scores: Scores) -> tuple[FloatArray, CorpusScore]:
    if scores.stats is None or metric.resampled is None:
        raise InvalidEvidence(f"{metric.name}: no sufficient statistics; score the completions again")
    return scores.stats, metric.resampled


def _n_references(references: References) -> int | None:
    """The number of references where all cases have as many, else None."""
    counts = {len(texts) for texts in references}
    return counts.pop() if len(counts) == 1 else None


def _sacrebleu(name: str, per_sentence: bool = False) -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    return CHRF() if name == "chrf" else BLEU(effective_order=per_sentence)


def _measure_sacrebleu(
    name: str, completions: Completions, references: References
) -> tuple[float, FloatArray, FloatArray]:
    """Corpus value and sentence scores through sacrebleu's own seam, where a missing reference is None."""
    corpus, sentence = _sacrebleu(name), _sacrebleu(name, per_sentence=True)
    width = max(map(len, references))
    streams = [[texts[k] if k < len(texts) else None for texts in references] for k in range(width)]
    rows = corpus._extract_corpus_statistics(completions, streams)
    value = float(corpus._aggregate_and_compute(rows).score)
    per_case = np.array([sentence._aggregate_and_compute([row]).score for row in rows], dtype=np.float64)
    return value, per_case, np.array(rows, dtype=np.float64)


def _signature_sacrebleu(name: str, references: References) -> str:
    corpus = _sacrebleu(name)
    corpus.num_refs = _n_references(references) or -1
    label = "chrF2" if name == "chrf" else "BLEU"
    return f"{label}|{corpus.get_signature()}"


def _rouge_package() -> tuple[str, Any]:
    """The distribution that computes ROUGE here, and its scorer class."""
    try:
        from rouge_score_rs.rouge_scorer import RougeScorer
    except ImportError:
        from rouge_score.rouge_scorer import RougeScorer

        return "rouge-score", RougeScorer
    return "rouge-score-rs", RougeScorer


def _measure_rouge(
    name: str, completions: Completions, references: References
) -> tuple[float, FloatArray, None]:
    """F1 of the best reference, as rouge_score's `score_multi`; sentences of rougeLsum are lines."""
    _, scorer_class = _rouge_package()
    scorer = scorer_class([name], use_stemmer=False)
    pairs = [
        (reference, text) for text, texts in zip(completions, references, strict=True) for reference in texts
    ]
    if hasattr(scorer, "score_batch"):
        scored = scorer.score_batch([reference for reference, _ in pairs], [text for _, text in pairs])
    else:
        scored = [scorer.score(reference, text) for reference, text in pairs]
    f1 = np.array([100 * found[name].fmeasure for found in scored], dtype=np.float64)
    starts = np.cumsum([0, *map(len, references)])[:-1]
    per_case = np.maximum.reduceat(f1, starts)
    return float(per_case.mean()), per_case, None


def _signature_rouge(name: str, references: References) -> str:
    package, _ = _rouge_package()
    split = "|sentences:lines" if name == "rougeLsum" else ""
    return (
        f"{name}|nrefs:{_n_references(references) or 'var'}|measure:f1|best:ref|stem:no|tok:a-z0-9{split}"
        f"|package:{package}|version:{metadata.version(package)}"
    )


def _measure_exact_match(completions: Completions, references: References) -> tuple[float, FloatArray, None]:
    """100 where the completion equals one of the references, both without outer whitespace, else 0."""
    hits = [
        text.strip() in {reference.strip() for reference in texts}
        for text, texts in zip(completions, references, strict=True)
    ]
    per_case = 100 * np.array(hits, dtype=np.float64)
    return float(per_case.mean()), per_case, None


def _signature_exact_match(references: References) -> str:
    return f"exact_match|nrefs:{_n_references(references) or 'var'}|case:mixed|strip:yes|version:1"


def _sacrebleu_metric(name: str, resampled: CorpusScore) -> Metric:
    return Metric(
        name, "corpus", partial(_measure_sacrebleu, name), partial(_signature_sacrebleu, name), resampled
    )


def _rouge_metric(name: str) -> Metric:
    return Metric(name, "mean", partial(_measure_rouge, name), partial(_signature_rouge, name))


METRICS: dict[str, Metric] = {
    "bleu": _sacrebleu_metric("bleu", bleu_from_stats),
    "chrf": _sacrebleu_metric("chrf", chrf_from_stats),
    "rouge1": _rouge_metric("rouge1"),
    "rouge2": _rouge_metric("rouge2"),
    "rougeL": _rouge_metric("rougeL"),
    "rougeLsum": _rouge_metric("rougeLsum"),
    "exact_match": Metric("exact_match", "binary", _measure_exact_match, _signature_exact_match),
}
