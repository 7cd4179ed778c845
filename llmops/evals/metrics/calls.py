"""Tool calls: whether an answer calls the functions it must, with the arguments it must."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from llmops.errors import DataError
from llmops.records import Case, ToolCall
from llmops.schema import canonical_json

Order = Literal["any", "same"]
Arguments = Literal["same", "ignored"]


def wanted_calls(case: Case) -> list[ToolCall]:
    """The calls that `expected.tool_calls` of a case asks for; [] asks for none.

    Each is `{name, arguments}`, or the same within `function` as OpenAI spells it; arguments are an object, or its JSON
    text, and {} when left out.

    Raises:
        DataError: they are not spelt so.
    """
    spelt = case.expected.get("tool_calls")
    where = f"case {case.source}: expected.tool_calls"
    if not isinstance(spelt, list):
        raise DataError(f"{where} is {spelt!r}; give a list of {{name, arguments}}, empty for no call")
    return [_wanted(where, call) for call in spelt]


def _wanted(where: str, spelt: Any) -> ToolCall:
    call = spelt.get("function", spelt) if isinstance(spelt, dict) else {}
    name, arguments = (call.get("name"), call.get("arguments", {})) if isinstance(call, dict) else (None, {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    found = ToolCall(str(name), text)
    if not isinstance(name, str) or canonical_arguments(found) is None:
        raise DataError(f"{where} has {spelt!r}; give a name, and arguments that are a JSON object")
    return found


def canonical_arguments(call: ToolCall) -> bytes | None:
    """The arguments in one spelling, so that order, white space and 1 or 1.0 make no difference; None: no object."""
    try:
        found = json.loads(call.arguments or "{}", parse_constant=_refuse)
        return canonical_json(_plain(found)) if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return None


def calls_match(
    wanted: Sequence[ToolCall], found: Sequence[ToolCall], order: Order, arguments: Arguments
) -> bool:
    """Whether the same functions are called as often, with equal arguments; a call with broken ones matches none."""

    def spelt(call: ToolCall) -> tuple[str, bytes]:
        if arguments == "ignored":
            return call.name, b""
        inner = canonical_arguments(call)
        return call.name, b"broken" if inner is None else inner

    ours, theirs = [spelt(call) for call in wanted], [spelt(call) for call in found]
    return ours == theirs if order == "same" else sorted(ours) == sorted(theirs)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
