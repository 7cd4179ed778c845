"""What is proposed for a suite, how it is written down for a person to decide, and how it is read back.

A proposal file is JSONL, a line a case: `decision` is `?` until a person writes `yes` or `no`; `case` holds the fields
of a case file and may be corrected; `why`, `origin` and `answers` are for the reader.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmops.data.case_files import case_of
from llmops.errors import BadRequest, DataError, StoreError
from llmops.evals.evidence import trained_messages
from llmops.evals.grow.sources import Seen
from llmops.records import Case, Message
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict, digest_of

IN_SUITE, TRAINED, TWICE = "in the suite already", "in an adapter's training data", "proposed twice"


@dataclass(frozen=True)
class Proposal:
    """Failures that may become cases, and how many may not, by reason."""

    seen: tuple[Seen, ...]
    n_left_out: dict[str, int]


@dataclass(frozen=True)
class Decided:
    """A case a person decided about; `yes` None: not yet. `line` are the fields it is written down with."""

    line: JsonDict
    yes: bool | None
    why: str
    origin: str


def propose(registry: Registry, cases: Sequence[Case], seen: Iterable[Seen]) -> Proposal:
    """Leave out what the suite asks already, what an adapter was trained on, and what is there twice.

    Prompts count as the same when they differ in letter case, spaces or Unicode form alone.

    Raises:
        InvalidEvidence: an adapter's training data cannot be read, so that nothing can be said of it.
    """
    known = {prompt_key(case.messages) for case in cases}
    trained = trained_keys(registry)
    kept: dict[str, Seen] = {}
    left_out: Counter[str] = Counter()
    for one in seen:
        key = prompt_key(one.case.messages)
        reason = IN_SUITE if key in known else TRAINED if key in trained else TWICE if key in kept else None
        if reason is None:
            kept[key] = one
        else:
            left_out[reason] += 1
    return Proposal(tuple(kept.values()), dict(left_out))


def trained_keys(registry: Registry) -> set[str]:
    """Keys of every prompt that a registered adapter was trained on."""
    keys: set[str] = set()
    for record in registry.adapters():
        keys |= {prompt_key(messages) for messages in trained_messages(registry, record)}
    return keys


def prompt_key(messages: Sequence[Message]) -> str:
    """Digest of what is asked, whatever its letter case, spaces and Unicode form.

    >>> prompt_key([Message("user", "Hello  World")]) == prompt_key([Message("user", " hello world")])
    True
    """
    texts = [
        [m.role, " ".join(unicodedata.normalize("NFKC", m.content).casefold().split())] for m in messages
    ]
    return digest_of(texts)


def case_line(case: Case) -> JsonDict:
    """The fields of a case file that say this case; what it does not have is left out.

    >>> case_line(Case((Message("user", "hi"),), ("hello",), "g", "f:1"))
    {'messages': [{'role': 'user', 'content': 'hi'}], 'references': ['hello'], 'group': 'g'}
    """
    line: JsonDict = {"messages": [m.to_turn() for m in case.messages]}
    more = {
        "references": list(case.references),
        "follow_ups": list(case.follow_ups),
        "tools": json.loads(case.tools) if case.tools else None,
        "expected": case.expected,
        "slices": case.slices,
        "pair": case.pair,
        "group": case.group,
    }
    return line | {name: value for name, value in more.items() if value}


def write_proposal(path: Path, proposal: Proposal) -> None:
    """Write the file a person decides in.

    Raises:
        BadRequest: the file is there: decisions in it would be lost.
        StoreError: it could not be written.
    """
    if path.exists():
        raise BadRequest(f"{path}: is there already; confirm it, or propose into another file")
    lines = [
        {
            "decision": "?",
            "why": seen.why,
            "origin": seen.origin,
            "case": case_line(seen.case),
            "answers": list(seen.answers),
        }
        for seen in proposal.seen
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path}: could not be written ({error.strerror}); nothing was proposed") from error


def read_proposal(path: Path) -> list[Decided]:
    """The decisions in a file.

    Raises:
        DataError: the file is missing, or a line is no proposal or decides something else than yes, no or `?`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a file that --propose wrote") from None
    return [_decided(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _decided(text: str, where: str) -> Decided:
    try:
        line = json.loads(text)
        said, case, why, origin = (line[name] for name in ("decision", "case", "why", "origin"))
        case_of(case, where)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: is no proposed case ({error}); correct the line") from None
    known = {"yes": True, "no": False, "?": None}
    if said not in known:
        raise DataError(f"{where}: decision is {said!r:.40}; write yes, no or ?")
    return Decided(case, known[said], str(why), str(origin))
