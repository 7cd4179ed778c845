"""Scores of bare texts: answers as an evaluation would have kept them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmops.evals.metrics import METRICS, Answer, Scores, score
from llmops.records import Case, Completion, Message


def answers(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[Answer]:
    """One sample a case; `texts[i]` answers the case with `references[i]`."""
    found = []
    for i, (text, expected) in enumerate(zip(texts, references, strict=True)):
        case = Case((Message("user", f"question {i}"),), tuple(expected), f"g{i}", f"cases.jsonl:{i + 1}")
        found.append(Answer(case, (completion(case, text),)))
    return found


def completion(case: Case, text: str, sample: int = 0) -> Completion:
    """An answer of a system called `x`."""
    return Completion(
        case.digest, "x", "answered", text, "stop", 3, 5, 0.1, "d" * 64, "c" * 64, sample=sample
    )


def score_texts(
    names: Iterable[str], texts: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Scores]:
    """Scores of texts by the metrics of those names."""
    return score([METRICS[name] for name in names], answers(texts, references))
