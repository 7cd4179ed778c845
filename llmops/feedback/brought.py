"""Other tools' exports as items and answers: Argilla's JSON of records and Label Studio's JSON of tasks.

A YAML file says which of their fields and questions mean what. Formats: `Dataset.records.to_json` of Argilla 2, and the
records of its older feedback datasets; Label Studio's export `JSON` (https://labelstud.io/guide/task_format). Pure but
for reading the two files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmops.errors import DataError
from llmops.feedback.campaign_file import DEFAULT_QUESTION, Name, Question
from llmops.ratings.rows import Answer
from llmops.records import CampaignKind, Dropped, Item, Message
from llmops.schema import JsonDict

Vote = Literal["first", "second", "tie", "both_bad", "skip"]
CHOICE_OF: dict[str, str] = {
    "first": "left",
    "second": "right",
    "tie": "tie",
    "both_bad": "both_bad",
    "skip": "skip",
}
"""The first answer counts as having stood left: on which side it was is not in the exports."""
SIDES = {"left": "first", "right": "second", "first": "first", "second": "second", "tie": "tie"}


class ImportFile(BaseModel):
    """How an export is to be read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    """What the campaign of the imported answers is called."""
    format: Literal["argilla", "label_studio"]
    """Whose export it is."""
    kind: CampaignKind = "compare"
    """What people did: compare two answers, rate one, or edit one."""
    prompt: str
    """The field with what was asked: text, or turns with role and content."""
    answers: tuple[str, ...] = Field(min_length=1, max_length=2)
    """The fields with the answers: two to compare, else one."""
    vote: str | None = None
    """Compare: the question (Argilla) or control tag (Label Studio) that says which is better."""
    values: dict[str, Vote] = Field(default_factory=dict)
    """Compare: what the question's values, or the options that it ranks, mean."""
    scores: tuple[str, ...] = ()
    """Rate: the questions with a number."""
    edit: str | None = None
    """Edit: the question with the corrected text."""
    note: str | None = None
    """A question with a comment."""
    tags: str | None = None
    """A question with labels that become tags."""
    systems: tuple[str, ...] = ()
    """Which adapters gave the answers, in their order; left out where it is not known."""
    licence: str = "not stated"
    """Carried by everything that is exported from it."""
    question: Question = DEFAULT_QUESTION
    """What people were asked."""

    @model_validator(mode="after")
    def _fits(self) -> ImportFile:
        n = 2 if self.kind == "compare" else 1
        if len(self.answers) != n or len(self.systems) not in (0, n):
            raise ValueError(f"answers, systems: kind {self.kind} has {n} of each (systems may be left out)")
        needed = {"compare": self.vote, "rate": self.scores, "edit": self.edit}[self.kind]
        if not needed:
            word = {"compare": "vote", "rate": "scores", "edit": "edit"}[self.kind]
            raise ValueError(f"{word}: kind {self.kind} needs it")
        return self


@dataclass(frozen=True)
class Said:
    """One person's answer, and where it stood."""

    rater: str
    answer: Answer
    where: str


@dataclass
class Brought:
    """What an export holds: items with their answers in the file's order, and what cannot be used, with the reason."""

    items: dict[str, Item] = field(default_factory=dict)
    said: dict[str, list[Said]] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)


class _Unusable(ValueError):
    """Why a record or an answer cannot be used: `class: detail`."""


def read_export(path: Path, how: ImportFile) -> Brought:
    """The items and answers of an export.

    Raises:
        DataError: the file is missing, or is not such an export.
    """
    found = Brought()
    for number, record in enumerate(_records(path, how), start=1):
        where = f"{path.name}:{number}"
        try:
            fields = record["data"] if how.format == "label_studio" else record["fields"]
            item = _item(fields, how, where)
        except _Unusable as error:
            found.dropped.append(Dropped(where, str(error)))
            continue
        found.items.setdefault(item.digest, item)
        given = found.said.setdefault(item.digest, [])
        said = _annotations(record) if how.format == "label_studio" else _responses(record)
        for rater, values, extra in said:
            try:
                given.append(Said(f"{how.format}:{rater}", _answer(values, extra, how), where))
            except _Unusable as error:
                found.dropped.append(Dropped(f"{where} ({how.format}:{rater})", str(error)))
    return found


def _records(path: Path, how: ImportFile) -> list[JsonDict]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the exported file") from None
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); export it as JSON again") from None
    key = "data" if how.format == "label_studio" else "fields"
    if not isinstance(data, list) or not all(
        isinstance(r, dict) and isinstance(r.get(key), dict) for r in data
    ):
        what = "Label Studio's JSON (not JSON-MIN)" if how.format == "label_studio" else "Argilla's to_json"
        raise DataError(f"{path}: is not a list of records with {key!r}; export it as {what}")
    return data


def _item(fields: JsonDict, how: ImportFile, where: str) -> Item:
    for name in (how.prompt, *how.answers):
        if name not in fields:
            raise _Unusable(f"missing field: {name!r}; it has {', '.join(map(repr, fields))}")
    answers = tuple(fields[name] for name in how.answers)
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise _Unusable("empty answer: an answer is not a text")
    if len(answers) == 2 and answers[0].strip() == answers[1].strip():
        raise _Unusable("same answer: there is nothing to compare")
    return Item(_messages(fields[how.prompt]), answers, where, where)


def _messages(prompt: Any) -> tuple[Message, ...]:
    if isinstance(prompt, str) and prompt.strip():
        return (Message("user", prompt),)
    try:
        messages = tuple(Message(str(turn["role"]), str(turn["content"])) for turn in prompt)
    except (TypeError, KeyError):
        messages = ()
    if not messages:
        raise _Unusable("empty prompt: neither a text nor turns with role and content")
    return messages


def _responses(record: JsonDict) -> Iterator[tuple[str, JsonDict, JsonDict]]:
    """Argilla: who answered, the values by question, and what is known besides."""
    given = record.get("responses") or {}
    if isinstance(given, list):  # feedback datasets before 2.0: an object a user
        for one in given:
            values = {name: value.get("value") for name, value in (one.get("values") or {}).items()}
            yield str(one.get("user_id")), values, {"status": one.get("status", "submitted")}
        return
    by_user: dict[str, JsonDict] = {}
    for question, answers in given.items():
        for one in answers:
            by_user.setdefault(str(one.get("user_id")), {})[question] = one.get("value")
    for user, values in by_user.items():
        yield user, values, {}


def _annotations(task: JsonDict) -> Iterator[tuple[str, JsonDict, JsonDict]]:
    """Label Studio: who annotated, the values by control tag, and what is known besides."""
    for one in task.get("annotations") or ():
        who = one.get("completed_by")
        who = who.get("id") if isinstance(who, dict) else who
        values: JsonDict = {}
        for region in one.get("result") or ():
            value = region.get("value") or {}
            for key in ("selected", "choices", "rating", "number", "text", "ranker"):
                if key in value:
                    values.setdefault(str(region.get("from_name")), value[key])
        status = "discarded" if one.get("was_cancelled") else "submitted"
        yield str(who), values, {"status": status, "seconds": one.get("lead_time")}


def _answer(values: JsonDict, extra: JsonDict, how: ImportFile) -> Answer:
    status = extra.get("status", "submitted")
    if status != "submitted":
        raise _Unusable(f"not submitted: its status is {status}")
    seconds = extra.get("seconds")
    dwell = int(1000 * seconds) if isinstance(seconds, int | float) and 0 <= seconds < 2e6 else None
    note = _text(values.get(how.note)) if how.note else ""
    tags = tuple(dict.fromkeys(_words(values.get(how.tags)))) if how.tags else ()
    if how.kind == "compare":
        vote = _vote(values.get(str(how.vote)), how)
        return Answer(CHOICE_OF[vote], tags=tags, note=note, dwell_ms=dwell)
    if how.kind == "rate":
        scores = {name: _score(name, values[name]) for name in how.scores if values.get(name) is not None}
        if not scores:
            raise _Unusable("no answer: none of its scores is given")
        return Answer("rated", tags=tags, scores=scores, note=note, dwell_ms=dwell)
    edit = _text(values.get(str(how.edit)))
    if not edit.strip():
        raise _Unusable("no answer: there is no corrected text")
    return Answer("edited", tags=tags, note=note, edit=edit, dwell_ms=dwell)


def _vote(value: Any, how: ImportFile) -> str:
    if value is None or value == []:
        raise _Unusable("no answer: the vote is not given")
    if isinstance(value, list) and all(isinstance(option, dict) for option in value):
        return _ranked({str(o.get("value")): o.get("rank") for o in value}, how)
    if isinstance(value, list) and len(value) > 1:
        return _ranked({str(option): place for place, option in enumerate(value)}, how)
    word = str(value[0] if isinstance(value, list) else value)
    said = how.values.get(word) or SIDES.get(word)
    if said is None:
        raise _Unusable(f"unknown value: {word!r} is not in values")
    return said


def _ranked(ranks: dict[str, Any], how: ImportFile) -> str:
    """What a ranking says of the two answers."""
    of: dict[str, Any] = {}
    for option, rank in ranks.items():
        side = how.values.get(option) or SIDES.get(option)
        if side in ("first", "second"):
            of[side] = rank
    if not isinstance(of.get("first"), int) or not isinstance(of.get("second"), int):
        raise _Unusable(f"unknown value: the ranking of {', '.join(map(repr, ranks))} names no two answers")
    if of["first"] == of["second"]:
        return "tie"
    return "first" if of["first"] < of["second"] else "second"


def _score(name: str, value: Any) -> int:
    number = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or number != int(number):
        raise _Unusable(f"no whole number: {name} is {value!r}")
    return int(number)


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _words(value: Any) -> list[str]:
    given = value if isinstance(value, list) else [] if value is None else [value]
    return [str(word)[:64] for word in given if str(word).strip()]
