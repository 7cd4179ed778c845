"""How long rows are, in characters and, where a tokenizer is known, in tokens of their text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmops.data.quality.config import Length
from llmops.data.quality.findings import Finding, Found, spread
from llmops.data.quality.texts import AnyRow, texts_of

CountTokens = Callable[[Sequence[str]], list[int]]
"""How many tokens each of some texts has."""
_CHUNK_ROWS = 2_000


def lengths(rows: Sequence[AnyRow], settings: Length, count_tokens: CountTokens | None) -> Found:
    """Rows outside of the limits, longest first, and the distribution of lengths.

    Limits in tokens are left unchecked, and said so, when `count_tokens` is None.
    """
    n_characters = [sum(map(len, texts_of(row))) for row in rows]
    distribution = spread(n_characters, "characters")
    limits = [(n_characters, "characters", settings.min_characters, settings.max_characters)]
    not_checked = None
    if count_tokens is not None:
        n_tokens = _token_counts(rows, count_tokens)
        distribution |= spread(n_tokens, "tokens")
        limits.append((n_tokens, "tokens", settings.min_tokens, settings.max_tokens))
    elif settings.limits_tokens:
        not_checked = "limits in tokens: no tokenizer is known here"
    findings: dict[int, Finding] = {}
    for values, unit, low, high in limits:
        for i, n in enumerate(values):
            if n < low:
                findings.setdefault(i, Finding(i, f"too short: {n:,} {unit}, limit {low:,}", -n))
            elif high is not None and n > high:
                findings.setdefault(i, Finding(i, f"too long: {n:,} {unit}, limit {high:,}", n))
    return Found(tuple(findings[i] for i in sorted(findings)), distribution, not_checked)


def _token_counts(rows: Sequence[AnyRow], count_tokens: CountTokens) -> list[int]:
    found: list[int] = []
    for start in range(0, len(rows), _CHUNK_ROWS):
        texts = [texts_of(row) for row in rows[start : start + _CHUNK_ROWS]]
        counts = iter(count_tokens([text for parts in texts for text in parts]))
        found += [sum(next(counts) for _ in parts) for parts in texts]
    return found
