"""ROUGE: rouge_score's numbers, computed by rouge-score-rs where it is installed; all variants in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmops.errors import ConfigError
from llmops.evals.metrics.metric import (
    Answers,
    Measured,
    Metric,
    mean_of_samples,
    n_references,
    references_of,
    texts_of,
)
from llmops.evals.metrics.spelling import MetricSettings

Variant = Literal["rouge1", "rouge2", "rouge3", "rouge4", "rougeL", "rougeLsum"]
Words = Literal["a-z0-9", "unicode", "character"]


class Rouge(MetricSettings):
    """ROUGE with settings of its own."""

    kind: Literal["rouge"]
    variant: Variant = "rougeL"
    """n-grams of 1 to 4 words, the longest common subsequence, or that of each line (`rougeLsum`)."""
    stem: bool = False
    """Whether words longer than 3 letters are stemmed (Porter); English only, with words `a-z0-9`."""
    words: Words = "a-z0-9"
    """What is a word: rouge_score's, which drops all but ASCII; `unicode` for other scripts; each `character`."""

    @property
    def usual_name(self) -> str:
        """The variant."""
        return self.variant

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read.

        Raises:
            ConfigError: stemming is asked for with words that it does not know, or the fast package is missing.
        """
        del folder
        if self.stem and self.words != "a-z0-9":
            raise ConfigError(f"{self.label}: stem works with words: a-z0-9, not {self.words}; leave it out")
        if self.words != "a-z0-9" and _package()[0] != "rouge-score-rs":
            raise ConfigError(f"{self.label}: words: {self.words} needs a package; install rouge-score-rs")
        return _metric(self.label, self.variant, _Reading(self.stem, self.words))


@dataclass(frozen=True)
class _Reading:
    """How texts become words."""

    stem: bool = False
    words: Words = "a-z0-9"

    def scorer(self, variants: Sequence[str]) -> Any:
        """The package's own object, for these variants at once."""
        _, scorer_class = _package()
        if self.words == "a-z0-9":
            return scorer_class(list(variants), use_stemmer=self.stem)
        from rouge_score_rs import tokenizers

        unicode = self.words == "unicode"
        tokenizer = tokenizers.UnicodeTokenizer() if unicode else tokenizers.CharacterTokenizer()
        return scorer_class(list(variants), tokenizer=tokenizer)


def _package() -> tuple[str, Any]:
    """The distribution that computes ROUGE here, and its scorer class."""
    try:
        from rouge_score_rs.rouge_scorer import RougeScorer
    except ImportError:
        from rouge_score.rouge_scorer import RougeScorer

        return "rouge-score", RougeScorer
    return "rouge-score-rs", RougeScorer


def _measure(reading: _Reading, variants: Sequence[str], answers: Answers) -> list[Measured]:
    """F1 of the best reference, as rouge_score's `score_multi`; sentences of rougeLsum are lines."""
    scorer = reading.scorer(variants)
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
    starts = np.cumsum([0, *map(len, references)])[:-1]
    f1 = [np.array([100 * found[v].fmeasure for found in scored], dtype=np.float64) for v in variants]
    return [mean_of_samples(answers, np.maximum.reduceat(each, starts)) for each in f1]


def _signature(variant: str, reading: _Reading, answers: Answers) -> str:
    package, _ = _package()
    split = "|sentences:lines" if variant == "rougeLsum" else ""
    return (
        f"{variant}|nrefs:{n_references(answers) or 'var'}|measure:f1|best:ref|stem:{'yes' if reading.stem else 'no'}"
        f"|tok:{reading.words}{split}|package:{package}|version:{metadata.version(package)}"
    )


@cache
def _pass(reading: _Reading) -> partial[list[Measured]]:
    """The pass over texts that all variants of one reading share."""
    return partial(_measure, reading)


def _metric(name: str, variant: str, reading: _Reading) -> Metric:
    together = _pass(reading)

    def measure(answers: Answers) -> Measured:
        return together([variant], answers)[0]

    return Metric(
        name, "mean", measure, partial(_signature, variant, reading), together=together, part=variant
    )


ROUGE: dict[str, Metric] = {
    name: _metric(name, name, _Reading()) for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")
}
