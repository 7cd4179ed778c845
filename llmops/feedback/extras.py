"""What a campaign adds to its items: more votes on some, gold items, and swapped repeats."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmops.errors import ConfigError, DataError
from llmops.feedback.campaign_file import AnyCampaign, Overlap
from llmops.records import CampaignKind, Item, Message
from llmops.schema import canonical_json

KNOWN: dict[CampaignKind, tuple[str, ...]] = {
    "compare": ("first", "second", "tie", "both_bad"),
    "edit": ("edited", "kept"),
    "rate": (),
}


@dataclass(frozen=True)
class Dressed:
    """All items of a campaign in their order: those that count, then gold ones, then repeats."""

    items: tuple[Item, ...]
    n_counting: int
    n_gold: int
    n_repeats: int
    gold_every: int


class _GoldLine(BaseModel):
    """A line of a gold file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str | None = Field(default=None, min_length=1)
    """What is asked, as one turn; else `messages`."""
    messages: tuple[dict[str, Any], ...] = ()
    """What is asked, in OpenAI's form."""
    answers: tuple[str, ...] = ()
    """Two answers; else `answer`."""
    answer: str | None = None
    """The one answer that is rated or edited."""
    known: str | dict[str, Annotated[int, Field(ge=1, le=5)]]
    """What people should say."""

    @model_validator(mode="after")
    def _whole(self) -> _GoldLine:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give `prompt`, or `messages`")
        return self


def dress(file: AnyCampaign, kind: CampaignKind, items: Sequence[Item], folder: Path) -> Dressed:
    """The items with what the campaign's file adds to them.

    Args:
        file: the campaign's.
        kind: what people do.
        items: those that count, in their order.
        folder: what the gold file's path is relative to.

    Raises:
        ConfigError: the gold file is not there.
        DataError: a line of it cannot be used; names file and line.
    """
    counting = [_with_votes(item, i, file.overlap) for i, item in enumerate(items)]
    there = {item.digest for item in counting}
    gold = [item for item in _gold(file, kind, folder) if item.digest not in there]
    repeats = [
        replace(item, repeat_of=item.digest, votes=None)
        for i, item in enumerate(counting)
        if _is_one_of(i, file.repeats_frac)
    ]
    every = file.gold.every if file.gold is not None and gold else 0
    return Dressed((*counting, *gold, *repeats), len(counting), len(gold), len(repeats), every)


def _with_votes(item: Item, place: int, overlap: Overlap | None) -> Item:
    if overlap is None or not _is_one_of(place, overlap.frac):
        return item
    return replace(item, votes=overlap.votes)


def _is_one_of(place: int, frac: float) -> bool:
    """Whether the item at a place is among `frac` of all, which lie evenly; the first always is.

    >>> [i for i in range(10) if _is_one_of(i, 0.3)]
    [0, 4, 7]
    """
    if place == 0:
        return frac > 0
    return int(place * frac + 1e-9) > int((place - 1) * frac + 1e-9)


def _gold(file: AnyCampaign, kind: CampaignKind, folder: Path) -> Iterator[Item]:
    if file.gold is None:
        return
    path = folder / file.gold.file
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"{path}: gold items cannot be read ({error.strerror}); mend gold.file of campaign {file.name}"
        ) from None
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        item = _gold_item(line, kind, f"{file.gold.file}:{number}")
        if item.digest not in seen:
            seen.add(item.digest)
            yield item


def _gold_item(line: str, kind: CampaignKind, where: str) -> Item:
    try:
        said = _GoldLine.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: {at}: {first['msg']}; mend the line".replace(": :", ":")) from None
    answers = said.answers or ((said.answer,) if said.answer is not None else ())
    if len(answers) != (2 if kind == "compare" else 1):
        raise DataError(f"{where}: kind {kind} needs {'two answers' if kind == 'compare' else 'one answer'}")
    if isinstance(said.known, dict) != (kind == "rate") or (
        isinstance(said.known, str) and said.known not in KNOWN[kind]
    ):
        expected = " or ".join(KNOWN[kind]) or "scores by question"
        raise DataError(f"{where}: known: {json.dumps(said.known)} is no answer; give {expected}")
    known = said.known if isinstance(said.known, str) else canonical_json(said.known).decode()
    try:
        messages = tuple(Message.of_turn(turn) for turn in said.messages)
    except (KeyError, TypeError):
        raise DataError(f"{where}: messages: not turns with role and content; mend the line") from None
    messages = messages or (Message("user", str(said.prompt)),)
    return Item(messages, answers, where, where, known=known)
