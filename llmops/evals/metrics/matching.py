"""Metrics that compare an answer with its references word by word or whole: exact match and token F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

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

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Forgiven(BaseModel):
    """What does not count when two texts are compared; outer white space never does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: bool = False
    """Upper and lower case."""
    punctuation: bool = False
    """Every ASCII punctuation mark."""
    articles: bool = False
    """The words a, an and the."""
    whitespace: bool = False
    """How much white space stands between words, and of which kind."""

    def normal(self, text: str) -> str:
        """The text without what is forgiven; all four together are the normalisation of SQuAD's scorer."""
        if self.case:
            text = text.lower()
        if self.punctuation:
            text = text.translate(_PUNCTUATION)
        if self.articles:
            text = _ARTICLES.sub(" ", text)
        return " ".join(text.split()) if self.whitespace else text.strip()

    def __str__(self) -> str:
        """For signatures."""
        names = [name for name, forgiven in self.model_dump().items() if forgiven]
        return ",".join(names) or "none"


SQUAD = Forgiven(case=True, punctuation=True, articles=True, whitespace=True)


class ExactMatch(MetricSettings):
    """100 where the answer equals one of the references, else 0."""

    kind: Literal["exact_match"]
    forgive: Forgiven | Literal["squad"] = Forgiven()
    """What does not count; `squad` is all of it."""

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder
        return _exact_match(self.label, SQUAD if self.forgive == "squad" else self.forgive)


class TokenF1(MetricSettings):
    """F1 of the words that the answer shares with its best reference, in points."""

    kind: Literal["token_f1"]
    forgive: Forgiven | Literal["squad"] = "squad"
    """What does not count; `squad` is all of it."""

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder
        return _token_f1(self.label, SQUAD if self.forgive == "squad" else self.forgive)


def _exact_match(name: str, forgiven: Forgiven) -> Metric:
    def measure(answers: Answers) -> Measured:
        hits = [
            forgiven.normal(text) in {forgiven.normal(reference) for reference in texts}
            for text, texts in zip(texts_of(answers), references_of(answers), strict=True)
        ]
        return mean_of_samples(answers, 100 * np.array(hits, dtype=np.float64))

    plain = forgiven == Forgiven()
    how = "case:mixed|strip:yes" if plain else f"forgives:{forgiven}|strip:yes"
    return Metric(
        name, "binary", measure, lambda a: f"exact_match|nrefs:{n_references(a) or 'var'}|{how}|version:1"
    )


def _token_f1(name: str, forgiven: Forgiven) -> Metric:
    return Metric(
        name,
        "mean",
        partial(_measure_f1, forgiven),
        lambda a: (
            f"token_f1|nrefs:{n_references(a) or 'var'}|best:ref|forgives:{forgiven}|empty:equal|version:1"
        ),
    )


def _measure_f1(forgiven: Forgiven, answers: Answers) -> Measured:
    f1 = [
        max(_f1(forgiven.normal(text).split(), forgiven.normal(reference).split()) for reference in texts)
        for text, texts in zip(texts_of(answers), references_of(answers), strict=True)
    ]
    return mean_of_samples(answers, 100 * np.array(f1, dtype=np.float64))


def _f1(words: list[str], expected: list[str]) -> float:
    """SQuAD 2.0's rule: where either has no word, 1 if both have none, else 0."""
    if not words or not expected:
        return float(words == expected)
    n_shared = sum((Counter(words) & Counter(expected)).values())
    return 2 * n_shared / (len(words) + len(expected))


MATCHING: dict[str, Metric] = {
    "exact_match": _exact_match("exact_match", Forgiven()),
    "token_f1": _token_f1("token_f1", SQUAD),
}
