"""What a stored record is: its canonical JSON, its digest, its schema and version.

A record knows its schema (`llmops.<record>/<major>`); one with an unknown name or major is refused, never guessed at.
Digests are lower-case hex sha256 of canonical JSON. Reads and writes no files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, TypeVar, cast

from llmops.errors import InvalidEvidence

JsonDict = dict[str, Any]
SHORT_DIGEST = 12

Progress = Callable[[int, int, str], None]
"""How long work reports itself: (done, total, note); total 0 when it is not known."""


def no_progress(done: int, total: int, note: str) -> None:
    """Report nowhere."""


def canonical_json(value: object) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces, UTF-8, no NaN or infinity.

    >>> canonical_json({"b": 1, "a": "é"}).decode()
    '{"a":"é","b":1}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(value: object) -> str:
    """sha256 (hex, 64 characters) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def short(digest: str) -> str:
    """The first 12 characters of a digest, as they stand in model names."""
    return digest[:SHORT_DIGEST]


class Record:
    """Base of all stored records: `schema`, conversion to and from plain JSON values, and a digest."""

    schema: ClassVar[str]
    later: ClassVar[tuple[str, ...]] = ()
    """Fields that joined after records of this schema were stored: left out at their default, so that those keep their
    digests."""

    def to_dict(self) -> JsonDict:
        """Plain JSON values (tuples become lists), with the schema first."""
        plain: JsonDict = json.loads(canonical_json(dataclasses.asdict(self)))  # type: ignore[call-overload]
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.name in self.later and getattr(self, field.name) == field.default:
                del plain[field.name]
        return {"schema": self.schema, **plain}

    def digest(self) -> str:
        """The digest of the record's canonical JSON."""
        return digest_of(self.to_dict())


R = TypeVar("R", bound=Record)


@cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def load_record(cls: type[R], data: JsonDict) -> R:
    """The record of class `cls` that `data` spells.

    Raises:
        InvalidEvidence: another schema or major version, an unknown field, or a value of the wrong type.
    """
    from pydantic import ValidationError

    found = data.get("schema") if isinstance(data, dict) else None  # what was edited may be any JSON
    if found != cls.schema:
        raise InvalidEvidence(
            f"record: schema {found!r} where {cls.schema!r} is needed; use the version that wrote it"
        )
    body = {k: v for k, v in data.items() if k != "schema"}
    unknown = set(body) - {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown:
        raise InvalidEvidence(
            f"{cls.schema}: unknown fields {sorted(unknown)}; use the version that wrote it"
        )
    try:
        record: R = _adapter(cast("Any", cls)).validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidEvidence(f"{cls.schema}: {where}: {first['msg']}; the record is damaged") from error
    return record
