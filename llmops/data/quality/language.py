"""Which language a row's answers are in (py3langid, whose model comes in its wheel)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from llmops.data.quality.config import Language
from llmops.data.quality.findings import Finding, Found
from llmops.data.quality.texts import AnyRow, answers_of
from llmops.errors import ConfigError

TOO_SHORT = "too_short"


def languages(rows: Sequence[AnyRow], settings: Language) -> Found:
    """Rows whose answers are in another language than those expected; the distribution counts rows by language.

    Raises:
        ConfigError: an expected language is not one that can be told.
    """
    _require_known(settings.expected)
    told: list[tuple[str, float] | None] = []
    for row in rows:
        text = "\n".join(answers_of(row))
        told.append(language_of(text) if len(text) >= settings.min_characters else None)
    counts = Counter(language for language, _ in filter(None, told))
    expected = settings.expected or tuple(language for language, _ in counts.most_common(1))
    findings = [
        Finding(i, f"language: {guess[0]} ({guess[1]:.2f}), expected {' or '.join(expected)}", guess[1])
        for i, guess in enumerate(told)
        if guess is not None and guess[0] not in expected and guess[1] >= settings.min_probability
    ]
    distribution: dict[str, int | float] = dict(counts.most_common())
    if n_short := told.count(None):
        distribution[TOO_SHORT] = n_short
    return Found(tuple(findings), distribution)


def language_of(text: str) -> tuple[str, float]:
    """The likeliest language of a text (ISO 639-1) and its probability among the 97 that are known.

    The arithmetic is py3langid's `classify`; features that do not occur are left out of the product, which takes 4 ms a
    text there.
    """
    model = _model()
    features = model.instance2fv(text, datatype="uint32")
    present = np.flatnonzero(features)
    scores = features[present].astype(np.float32) @ model.nb_ptc[present] + model.nb_pc
    probabilities = model.norm_probs(scores)
    best = int(np.argmax(probabilities))
    return str(model.nb_classes[best]), float(probabilities[best])


@cache
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=True)


def _require_known(expected: Sequence[str]) -> None:
    unknown = [language for language in expected if language not in _model().nb_classes]
    if unknown:
        known = " ".join(sorted(_model().nb_classes))
        raise ConfigError(
            f"quality.language.expected: {unknown[0]!r} is not a language that can be told; use of: {known}"
        )
