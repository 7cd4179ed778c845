"""From a judge's text to a verdict or scores. What does not say exactly one thing is unparsable: no score at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from llmops.evals.judge.config import JudgeConfig, PairwiseConfig, RubricConfig
from llmops.records import Place

_PLACES: dict[str, Place] = {"a": "first", "b": "second", "tie": "tie", "c": "tie"}
_MARKED = re.compile(r"\[\[\s*(\w+)\s*\]\]")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Said:
    """What a judge's text says; `error` says why it says nothing."""

    verdict: Place | None = None
    scores: dict[str, int] = field(default_factory=dict)
    error: str | None = None


def parse(config: JudgeConfig, text: str) -> Said:
    """The verdict or scores in a judge's text: from its JSON, wherever it stands in the text, else from `[[A]]`.

    A text that holds several which differ (a judge that quotes an answer's own "verdict") says nothing.
    """
    text = text.rpartition("</think>")[2]
    read = _verdict if isinstance(config, PairwiseConfig) else _scores(config)
    found = [said for said in map(read, _objects(text)) if said is not None]
    if not found:
        found = [
            said for said in (_marked(config, word) for word in _MARKED.findall(text)) if said is not None
        ]
    if not found:
        return Said(error=f"unparsable: {text[:200]!r} holds no {_wanted(config)}")
    if any(said != found[0] for said in found):
        return Said(error=f"unparsable: holds {len(found)} that differ ({text[:200]!r})")
    return found[0]


def _wanted(config: JudgeConfig) -> str:
    return "verdict" if isinstance(config, PairwiseConfig) else "score within its scale for every question"


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object that begins somewhere in the text and is inside no other."""
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield value
        at = text.find("{", end)


def _verdict(value: dict[str, Any]) -> Said | None:
    said = value.get("verdict")
    place = _PLACES.get(said.strip().casefold()) if isinstance(said, str) else None
    return Said(verdict=place) if place else None


def _scores(config: RubricConfig) -> Callable[[dict[str, Any]], Said | None]:
    def read(value: dict[str, Any]) -> Said | None:
        given = value.get("scores", value)
        if not isinstance(given, dict):
            return None
        scores = {q.id: _whole(given.get(q.id)) for q in config.questions}
        kept = {
            q.id: score
            for q in config.questions
            if (score := scores[q.id]) is not None and _fits(q.scale, score)
        }
        return Said(scores=kept) if len(kept) == len(config.questions) else None

    return read


def _whole(value: object) -> int | None:
    """A whole number, also spelt "4" or 4.0."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value.strip()):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value)


def _fits(scale: tuple[int, int], score: int) -> bool:
    return scale[0] <= score <= scale[1]


def _marked(config: JudgeConfig, word: str) -> Said | None:
    """What `[[word]]` says; a rubric of several questions cannot be answered so."""
    if isinstance(config, PairwiseConfig):
        place = _PLACES.get(word.casefold())
        return Said(verdict=place) if place else None
    (question, *others), score = config.questions, _whole(word)
    if others or score is None or not _fits(question.scale, score):
        return None
    return Said(scores={question.id: score})
