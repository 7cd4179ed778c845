"""Faults of settings in words: each one of a pydantic error as `where: what, with the value; what to do`.

Reads no files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

HIDDEN_INPUT = "hidden_input"
"""Type of a validator's error whose input is never shown: it may be a secret."""


def explain(error: ValidationError, model: type[BaseModel], data: object = None) -> str:
    """Every fault of a pydantic error as `where: what, with the value; what to do`, a line each after `also:`.

    `data` is what was validated: with it, names of variants (`kind`) are left out of places.
    """
    # A misspelt setting is often also a missing one; its own name is the better lead.
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    by_place: dict[tuple[str, ...], list[Any]] = {}
    for fault in faults:
        by_place.setdefault(tuple(_place(fault["loc"], data)), []).append(fault)
    lines = [_explained(alike, model, data) for alike in by_place.values()]
    misspelt = {
        f"{meant} is missing; add it" for meant in re.findall(r"did you mean ([^?]+)\?", "\n".join(lines))
    }
    return "\nalso: ".join(line for line in lines if line not in misspelt)


def _explained(alike: Sequence[Any], model: type[BaseModel], data: object) -> str:
    """The faults of one place in a line; a value of several types has one for each."""
    first, kind = alike[0], alike[0]["type"]
    where = ".".join(_place(first["loc"], data))
    context = first.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{where} is not a setting; {_nearest_setting(where, model)}"
    if kind in ("missing", "union_tag_not_found"):
        tag = "." + str(context["discriminator"]).strip("'") if "discriminator" in context else ""
        return f"{(where + tag).lstrip('.')} is missing; add it"
    if kind == "union_tag_invalid":
        where = f"{where}.{str(context['discriminator']).strip(chr(39))}".lstrip(".")
        return f"{where}: {_choice(str(context['tag']), context['expected_tags'])}"
    if kind == "literal_error" and len(alike) == 1:
        return f"{where}: {_choice(first['input'], context['expected'].replace(' or ', ', '))}"
    if kind == HIDDEN_INPUT:
        return f"{where} {first['msg']}"
    all_said = list(dict.fromkeys(_said(fault["type"], fault["msg"]) for fault in alike))
    said = " or ".join([all_said[0], *(said.removeprefix("must be ") for said in all_said[1:])])
    found = _found(first["input"], said)
    if kind == "value_error" and ";" in said:  # our own words, which say what to do
        what, _, advice = said.partition(";")
        return f"{where}: {what}{found};{advice}" if where else said
    return f"{where or 'settings'}: {said}{found}; correct it"


def _said(kind: str, message: str) -> str:
    plain = message.removeprefix("Value error, ").partition(", unable to parse")[0]
    return _MUST_BE.get(kind) or _SHOULD.sub("must ", plain)


def _found(value: object, said: str) -> str:
    """The value that is at fault, if it is short and was not named yet."""
    spelt = repr(value)
    whole = isinstance(value, dict) and len(value) > 1
    return "" if whole or len(spelt) > _SHOWN or (len(spelt) > 2 and spelt in said) else f" (found {spelt})"


_SHOULD = re.compile(r"^[A-Z][a-z]+ should ")  # pydantic's: Input should be, String should match ...
_SHOWN = 60  # characters; longer values are not repeated in messages
_MUST_BE = {
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be `name: value` lines of its own",
    "model_type": "must be `name: value` lines of its own",
    "model_attributes_type": "must be `name: value` lines of its own",
}


def _place(parts: Sequence[int | str], data: object) -> list[str]:
    """A fault's place without the names of variants and types, which pydantic puts between: nobody wrote them."""
    names: list[str] = []
    inner = {} if data is None else data
    for part in parts:
        if isinstance(inner, dict):
            if part not in inner and part in [v for v in inner.values() if isinstance(v, str)]:
                continue
            inner = inner.get(part, {})
        elif isinstance(inner, list) and isinstance(part, int):
            inner = inner[part] if part < len(inner) else {}
        else:
            continue
        names.append(str(part))
    return names


def _choice(found: object, expected: str) -> str:
    """What to say of a word that is none of those expected (`'a', 'b'`)."""
    words = [word.strip().strip("'") for word in expected.split(",")]
    close = get_close_matches(str(found), words, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else "choose one of them"
    one_of = "one of " if len(words) > 1 else ""
    return f"must be {one_of}{', '.join(words)} (found {found!r}); {hint}"


def _nearest_setting(where: str, model: type[BaseModel]) -> str:
    names = sorted(known_settings(model))
    # Compare whole paths first, then the last part alone: `lora.rnk` -> `lora.r`.
    close = get_close_matches(where, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(n for n in names if "." not in n)


def known_settings(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of every setting of a config class, through nested classes and unions of them."""
    names: set[str] = set()
    for name, info in model.model_fields.items():
        names.add(prefix + name)
        stack: list[object] = [info.annotation]
        while stack:
            kind = stack.pop()
            stack.extend(get_args(kind))
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names |= known_settings(kind, f"{prefix}{name}.")
    return names
