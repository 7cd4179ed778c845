"""What makes a conversation one that can be learnt from: its roles in order, every call answered, no turn empty."""

from __future__ import annotations

from collections.abc import Sequence

from llmops.records import Message
from llmops.schema import digest_of

ROLES = ("system", "user", "assistant", "tool")


def check_conversation(messages: Sequence[Message], tools: Sequence[str] = ()) -> None:
    """Refuse what is not [system] user answer (user answer)*, or has an empty turn.

    An answer is an assistant's turn. One with tool calls is followed by one tool turn a call, then by an answer again;
    it may also be the last turn.

    Args:
        messages: the turns.
        tools: names of the functions that may be called; none given: any may.

    Raises:
        ValueError: `class: detail`.
    """
    roles = [m.role for m in messages]
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise ValueError(f"unknown role: {unknown[0]!r}")
    _check_order(roles, messages)
    for i, message in enumerate(messages):
        _check_turn(i, message, tools)
        if message.role == "tool" and (i == 0 or messages[i - 1].role != "tool"):
            _check_results(i, messages)


def prompt_digest(messages: Sequence[Message]) -> str:
    """Digest of all turns but the last."""
    return asked_digest(messages[:-1])


def asked_digest(messages: Sequence[Message]) -> str:
    """Digest of what is asked, whatever is answered."""
    return digest_of([m.spelling for m in messages])


def check_prompt(messages: Sequence[Message]) -> None:
    """Refuse turns that no answer can follow: what `check_conversation` would refuse before an answer.

    Raises:
        ValueError: `class: detail`.
    """
    check_conversation((*messages, Message("assistant", "an answer")))


def _check_order(roles: Sequence[str], messages: Sequence[Message]) -> None:
    before = "system" if roles[:1] == ["system"] else ""
    for i in range(1 if before else 0, len(roles)):
        last = messages[i - 1] if i else None
        calling = last is not None and last.role == "assistant" and last.tool_calls
        if calling:
            allowed: tuple[str, ...] = ("tool",)
        elif last is not None and last.role == "user":
            allowed = ("assistant",)
        elif last is not None and last.role == "tool":
            allowed = ("tool", "assistant")
        else:
            allowed = ("user",)
        if roles[i] not in allowed:
            raise ValueError(f"wrong role order: {' '.join(roles)}")
    if not roles or roles == ["system"]:
        raise ValueError(f"wrong role order: {' '.join(roles) or 'no turns'}")
    if roles[-1] != "assistant":
        raise ValueError(f"wrong role order: ends with {roles[-1]}, not with an answer")


def _check_turn(i: int, message: Message, tools: Sequence[str]) -> None:
    if message.tool_calls and message.role != "assistant":
        raise ValueError(f"wrong role order: messages[{i}] is {message.role} and calls a tool")
    for call in message.tool_calls:
        if tools and call.name not in tools:
            raise ValueError(f"unknown tool: messages[{i}] calls {call.name!r}, which is not among tools")
    # A tool may well have nothing to say.
    if not message.content.strip() and not message.tool_calls and message.role != "tool":
        what = "empty answer" if message.role == "assistant" else "empty turn"
        raise ValueError(f"{what}: messages[{i}]")


def _check_results(first: int, messages: Sequence[Message]) -> None:
    """Every call of the turn before `first` has one result, and every result a call."""
    calls = messages[first - 1].tool_calls
    results = []
    for message in messages[first:]:
        if message.role != "tool":
            break
        results.append(message)
    if len(calls) != len(results):
        raise ValueError(
            f"missing tool result: messages[{first - 1}] has {len(calls)} calls, {len(results)} results"
        )
    ids = [call.id for call in calls]
    if len({i for i in ids if i is not None}) < sum(i is not None for i in ids):
        raise ValueError(f"ambiguous tool call: messages[{first - 1}] has two calls of one id")
    told = [result.tool_call_id for result in results]
    for n, found in enumerate(told):
        if found is not None and (found not in ids or found in told[:n]):
            raise ValueError(
                f"unknown tool call: messages[{first + n}] answers {found!r}, which was not asked"
            )
