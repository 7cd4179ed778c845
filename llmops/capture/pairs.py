"""Pairs of answers to one prompt among what was captured: what people can be asked to compare.

A shadow and the answer that was shown in its place, answers that two models gave to the same prompt at different
times, and answers of one response that asked for several (`n`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

from sqlalchemy import Engine

from llmops.capture.interaction import Answer, Interaction
from llmops.capture.keyring import Keyring
from llmops.capture.reading import ALL, Filter, interactions
from llmops.data import asked_digest
from llmops.records import Message
from llmops.schema import digest_of

MAX_INTERACTIONS = 20_000


@dataclass(frozen=True)
class CapturedPair:
    """One prompt with two answers; `answers[i]` is answer `choices[i]` of `responses[i]`, by `systems[i]`."""

    messages: tuple[Message, ...]
    tools: str | None
    answers: tuple[str, str]
    systems: tuple[str, str]  # digests of what answered
    responses: tuple[str, str]
    choices: tuple[int, int]
    lineages: tuple[str | None, str | None]
    arms: tuple[str | None, str | None]
    asked: str
    at: str  # of the newer response

    @property
    def prompt(self) -> str:
        """Digest of what was asked, tools included."""
        return digest_of([asked_digest(self.messages), self.tools])


def captured_pairs(
    engine: Engine,
    keyring: Keyring,
    wanted: Filter = ALL,
    systems: tuple[str, str] | None = None,
) -> Iterator[CapturedPair]:
    """Pairs of different whole texts, shadows first, no two of the same answers; newest prompts first.

    Args:
        engine: the database.
        keyring: what decrypts.
        wanted: which responses are looked at, the newest MAX_INTERACTIONS of them.
        systems: pairs of these two models alone, in this order; both the same: one model sampled twice.

    Of answers whose text cannot be read, that were cut off (`finish_reason: length`, a lost client) or that call
    tools there are no pairs.
    """
    found = [one for one in interactions(engine, keyring, wanted, MAX_INTERACTIONS) if _usable(one)]
    by_id = {one.response: one for one in found}
    seen: set[tuple[str, frozenset[str]]] = set()
    for first, second in _matched(found, by_id):
        for pair in _pairs(first, second):
            key = (pair.prompt, frozenset(pair.answers))
            ordered = pair if systems is None else _ordered(pair, systems)
            if ordered is not None and key not in seen:
                seen.add(key)
                yield ordered


def is_whole(answer: Answer) -> bool:
    """Whether an answer is text that came to its own end."""
    return answer.finish_reason == "stop" and not answer.tool_calls and bool(answer.content.strip())


def _usable(one: Interaction) -> bool:
    return one.problem is None and one.served.complete and bool(one.messages)


def _matched(
    found: Iterable[Interaction], by_id: dict[str, Interaction]
) -> Iterator[tuple[Interaction, Interaction]]:
    """Interactions that answer the same prompt: shadows with what was shown, then each with itself and the others."""
    by_prompt: dict[str, list[Interaction]] = {}
    for one in found:
        shown = by_id.get(one.served.shadow_of or "")
        if shown is not None:
            yield shown, one
        prompt = digest_of([asked_digest(one.messages), one.tools])
        by_prompt.setdefault(prompt, []).append(one)
    for same in by_prompt.values():
        for one in same:
            if len(one.answers) > 1:
                yield one, one
        newest = {one.adapter: one for one in reversed(same)}
        yield from combinations(newest.values(), 2)


def _pairs(first: Interaction, second: Interaction) -> Iterator[CapturedPair]:
    for i, one in enumerate(first.answers):
        for j, other in enumerate(second.answers):
            if (first is second and j <= i) or one.content == other.content:
                continue
            if is_whole(one) and is_whole(other):
                yield CapturedPair(
                    first.messages,
                    first.tools,
                    (one.content, other.content),
                    (first.adapter, second.adapter),
                    (first.response, second.response),
                    (i, j),
                    (first.served.lineage, second.served.lineage),
                    (first.served.arm, second.served.arm),
                    first.served.asked,
                    max(first.served.at, second.served.at),
                )


def _ordered(pair: CapturedPair, systems: tuple[str, str]) -> CapturedPair | None:
    """The pair with these systems in this order; None when it has others."""
    if pair.systems == systems:
        return pair
    if pair.systems != systems[::-1]:
        return None
    a, b = 1, 0
    return CapturedPair(
        pair.messages,
        pair.tools,
        (pair.answers[a], pair.answers[b]),
        systems,
        (pair.responses[a], pair.responses[b]),
        (pair.choices[a], pair.choices[b]),
        (pair.lineages[a], pair.lineages[b]),
        (pair.arms[a], pair.arms[b]),
        pair.asked,
        pair.at,
    )
