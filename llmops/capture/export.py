"""From captures and feedback to rows for training: every answer becomes a row, or is listed with the reason why not.

Every row that is written was read back as a recipe will read it. Prompts of a gate's pool are never among them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from sqlalchemy import Engine

from llmops.capture.interaction import Answer, Interaction
from llmops.capture.keyring import Keyring
from llmops.capture.reading import Filter, feedback_rows, interactions
from llmops.capture.said import AnswerKey, Said, preferences, said_of_answers
from llmops.data import asked_digest
from llmops.data.formats import parse
from llmops.errors import BadRequest, StoreError
from llmops.ledger import Ledger
from llmops.records import Dropped, Message
from llmops.schema import JsonDict, canonical_json
from llmops.settings import now

Form = Literal["sft", "preferences", "kto"]
NO_TEXT = "no text: the response was not captured, or its text is gone"
RULES: dict[str, str] = {
    "sft": "the newest correction, else an answer that more people call good than bad",
    "preferences": "an answer over one it was preferred to by most; the newest correction over the answer",
    "kto": "an answer that was called good or bad by most; a correction alone calls it bad",
}


@dataclass(frozen=True)
class Request:
    """What is exported: in which form, from which responses; `forbidden` are digests of prompts that gates use."""

    form: Form
    wanted: Filter
    forbidden: frozenset[str]


@dataclass(frozen=True)
class Exported:
    """What was written: rows, and answers that became none, by class of reason."""

    path: Path
    sha256: str
    n_rows: int
    n_dropped: dict[str, int]


def export(engine: Engine, keyring: Keyring, request: Request, path: Path) -> Exported:
    """Write rows to `path` (JSONL), dropped answers to `.dropped.jsonl` and both counts to `.manifest.json` beside it.

    The files can be read by their owner alone. The ledger is told digest and counts.

    Raises:
        BadRequest: a file is there already, or no answer became a row; nothing is written.
        NoKey: feedback was encrypted with a key that the ring lacks.
        StoreError: the disk did not take it; nothing is left behind.
    """
    targets = [path, path.with_suffix(".dropped.jsonl"), path.with_suffix(".manifest.json")]
    for target in targets:
        if target.exists():
            raise BadRequest(f"{target}: is there already; choose another file")
    beside = [target.with_name(f".{target.name}.new") for target in targets]
    try:
        exported = _write(_outcomes(engine, keyring, request), beside, path)
        if not exported.n_rows:
            why = (
                ", ".join(f"{n} {reason}" for reason, n in exported.n_dropped.items())
                or "nothing was captured"
            )
            raise BadRequest(f"capture export: no answer became a row ({why}); collect feedback first")
        manifest = {
            "schema": "llmops.capture_export/1", "form": request.form, "rule": RULES[request.form],
            "filter": asdict(request.wanted), "sha256": exported.sha256, "n_rows": exported.n_rows,
            "n_dropped": exported.n_dropped, "made_at": now(),
        }  # fmt: skip
        with _private(beside[2]) as file:
            file.write(json.dumps(manifest, indent=1).encode() + b"\n")
        for new, target in zip(beside, targets, strict=True):
            new.replace(target)
    except OSError as error:
        raise StoreError(f"{path}: could not be written ({error.strerror}); choose another folder") from error
    finally:
        for new in beside:
            new.unlink(missing_ok=True)
    body = {name: manifest[name] for name in ("form", "sha256", "n_rows", "n_dropped")}
    Ledger(engine).append("capture.exported", body)
    return exported


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _write(outcomes: Iterator[JsonDict | Dropped], beside: list[Path], path: Path) -> Exported:
    counts: Counter[str] = Counter()
    sha256, n_rows = hashlib.sha256(), 0
    with _private(beside[0]) as rows, _private(beside[1]) as dropped:
        for found in outcomes:
            if isinstance(found, Dropped):
                counts[found.kind] += 1
                dropped.write(canonical_json({"source": found.source, "reason": found.reason}) + b"\n")
                continue
            line = canonical_json(found) + b"\n"
            sha256.update(line)
            rows.write(line)
            n_rows += 1
    return Exported(path, sha256.hexdigest(), n_rows, dict(sorted(counts.items())))


def _outcomes(engine: Engine, keyring: Keyring, request: Request) -> Iterator[JsonDict | Dropped]:
    """Every captured answer and every compared pair as a row or dropped; then what was said where no text is left."""
    rows = list(feedback_rows(engine, keyring, request.wanted))
    said = said_of_answers(rows)
    liked = preferences(rows) if request.form == "preferences" else {}
    compared = {key[0] for pair in liked for key in pair}
    texts: dict[str, Interaction] = {}
    seen: set[str] = set()
    for one in interactions(engine, keyring, request.wanted):
        seen.add(one.response)
        if one.response in compared:
            texts[one.response] = one
        for i in range(max(1, len(one.answers))):
            yield _outcome(one, i, said.get((one.response, i), Said()), request)
    for pair in sorted(liked):
        yield _preference(pair, liked[pair], texts, request)
    for key in sorted(key for key in said if key[0] not in seen):
        yield Dropped(_source(key), NO_TEXT)


def _outcome(one: Interaction, i: int, said: Said, request: Request) -> JsonDict | Dropped:
    """What one answer becomes."""
    source = _source((one.response, i))
    problem = _unusable(one, request)
    if problem is not None:
        return Dropped(source, problem)
    answer = one.answers[i]
    prompt = [message.to_turn() for message in one.messages]
    if request.form == "sft":
        return _sft(one, answer, said, source)
    if request.form == "preferences":
        if said.correction is None:
            return Dropped(source, "no correction: nobody wrote a better answer")
        return _checked(
            {"prompt": prompt, "chosen": said.correction, "rejected": answer.content}, one, source
        )
    if said.good is None:
        return Dropped(source, said.why_undecided)
    return _checked({"prompt": prompt, "completion": answer.content, "label": said.good}, one, source, answer)


def _sft(one: Interaction, answer: Answer, said: Said, source: str) -> JsonDict | Dropped:
    row: JsonDict = {"messages": [message.to_turn() for message in one.messages]}
    if one.tools is not None:
        row["tools"] = json.loads(one.tools)
    if said.correction is not None:
        row["messages"].append({"role": "assistant", "content": said.correction})
        return _checked(row, one, source)
    if said.good is not True:
        return Dropped(source, "called bad" if said.good is False else said.why_undecided)
    row["messages"].append(Message("assistant", answer.content, None, answer.tool_calls).to_turn())
    return _checked(row, one, source, answer)


def _preference(
    pair: tuple[AnswerKey, AnswerKey], more: int, texts: dict[str, Interaction], request: Request
) -> JsonDict | Dropped:
    """What a comparison of two served answers becomes; `more`: how many more people prefer the first."""
    source = " ".join(_source(key) for key in pair)
    if more == 0:
        return Dropped(source, "split: as many prefer the one as the other")
    if any(response not in texts for response, _ in pair):
        return Dropped(source, NO_TEXT)
    (chosen, i), (rejected, j) = pair if more > 0 else pair[::-1]
    better, worse = texts[chosen], texts[rejected]
    problem = _unusable(better, request) or _unusable(worse, request)
    if problem is not None:
        return Dropped(source, problem)
    if (better.messages, better.tools) != (worse.messages, worse.tools):
        return Dropped(source, "different prompts: the two answers were to other questions")
    row = {
        "prompt": [message.to_turn() for message in better.messages],
        "chosen": better.answers[i].content,
        "rejected": worse.answers[j].content,
    }
    return _checked(row, better, source, better.answers[i])


def _unusable(one: Interaction, request: Request) -> str | None:
    """Why nothing can be learnt from an interaction, whatever was said of it."""
    if one.problem is not None:
        return one.problem
    if not one.answers:
        return "no answer: the response has none"
    if asked_digest(one.messages) in request.forbidden:
        return "gate prompt: stands in a gate pool"
    return None


def _checked(
    row: JsonDict, one: Interaction, source: str, learnt: Answer | None = None
) -> JsonDict | Dropped:
    """The row if a recipe can read it; `learnt` is the served answer that it teaches, which must be whole."""
    if learnt is not None and (learnt.finish_reason == "length" or not one.served.complete):
        return Dropped(source, "cut off: the answer did not come to its end")
    if one.tools is not None and "messages" not in row:
        return Dropped(source, "tools: judged answers are text")
    if row.get("chosen") is not None and row["chosen"] == row["rejected"]:
        return Dropped(source, "same answers: nothing to prefer")
    found = parse(row, source)
    return found if isinstance(found, Dropped) else {**row, "source": source}


def _source(key: AnswerKey) -> str:
    return f"capture:{key[0]}#{key[1]}"
