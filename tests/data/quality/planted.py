"""Rows with known faults, made from words that mean nothing, and the brute-force answers they are compared with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from llmops.records import EvalText, Message, Preference, Row

WORDS = [
    a + b + c
    for a in ("ba", "de", "fi", "go", "lu", "mo", "ne", "po")
    for b in ("ra", "ti", "su", "ko")
    for c in "lmnrst"
]


def words(seed: int, n: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=n)


def row(prompt: str, answer: str = "Yes, it does.", line: int = 1, system: str | None = None) -> Row:
    asked = [Message("system", system)] if system else []
    messages = (*asked, Message("user", prompt), Message("assistant", answer))
    return Row(messages, f"g{line}", f"rows.jsonl:{line}")


def rows_of(texts: Sequence[str]) -> list[Row]:
    return [row(text, line=i) for i, text in enumerate(texts, start=1)]


def pair(prompt: str, chosen: str, rejected: str, line: int = 1) -> Preference:
    return Preference((Message("user", prompt),), chosen, rejected, "g", f"pairs.jsonl:{line}", "ab" * 32, ())


def case(
    prompt: Sequence[str], references: Sequence[str] = (), suite: str = "s", number: int = 0
) -> EvalText:
    return EvalText(suite, f"{number:064d}", f"cases.jsonl:{number + 1}", tuple(prompt), tuple(references))
