"""The chat template: a conversation as the one text that the model reads, in training as in serving.

Tool calls and tools are handed to the template as vLLM hands them: a call's arguments as an object, not as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

from llmops.errors import RowRefused
from llmops.records import Message, PromptContract
from llmops.schema import JsonDict

_TOOL_ORDER = ("type", "function")
_FUNCTION_ORDER = ("name", "description", "parameters")


class Tokenizer(Protocol):
    """What is used of a transformers fast tokenizer."""

    @property
    def backend_tokenizer(self) -> Any:
        """The tokenizer of the `tokenizers` library inside."""

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Special tokens by the names that templates use: bos_token, eos_token ..."""


class Template:
    """A contract's chat template with a tokenizer's special tokens: renders as `apply_chat_template` does."""

    def __init__(self, tokenizer: Tokenizer, contract: PromptContract) -> None:
        """Compile nothing yet: a template that does not compile refuses the first conversation."""
        self._template, self._system = contract.chat_template, contract.system
        self._specials = dict(tokenizer.special_tokens_map)

    def render(self, messages: Sequence[Message], open_answer: bool, tools: str | None = None) -> str:
        """The conversation as the model reads it; `open_answer` ends it where the assistant starts to write.

        Args:
            messages: the turns, before which the default system prompt is put where they bring none.
            open_answer: whether the assistant is to write next.
            tools: the functions it may call, as JSON (`Row.tools`).

        Raises:
            RowRefused: the chat template refuses the conversation (its own words are kept), or a call's arguments are
                no JSON object.
        """
        turns = [_turn(m) for m in with_system(messages, self._system)]
        try:
            texts, _ = _renderer()(
                [turns],
                tools=_tools(tools),
                chat_template=self._template,
                add_generation_prompt=open_answer,
                **self._specials,
            )
        except Exception as error:  # jinja2 and templates' own raise_exception share no narrower class
            raise RowRefused(
                "template refuses", f"chat template: refuses the conversation ({error}); mend its roles"
            ) from error
        text: str = texts[0]
        return text


@cache
def _renderer() -> Callable[..., Any]:
    """Transformers' own renderer, which compiles a template once; what `apply_chat_template` calls."""
    from transformers.utils.chat_template_utils import render_jinja_template

    found: Callable[..., Any] = render_jinja_template
    return found


def with_system(messages: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The conversation with the default system prompt before it, unless it brings its own or there is none."""
    if system is None or (messages and messages[0].role == "system"):
        return tuple(messages)
    return (Message("system", system), *messages)


def _turn(message: Message) -> JsonDict:
    """The turn as templates take it: OpenAI's form, with the arguments of calls as objects."""
    turn = message.to_turn()
    for call in turn.get("tool_calls", ()):
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except json.JSONDecodeError as error:
            raise _bad_arguments(function, f"not JSON ({error.msg})") from None
        if not isinstance(arguments, dict):
            raise _bad_arguments(function, f"{type(arguments).__name__}, not an object")
        function["arguments"] = arguments
    return turn


def _bad_arguments(function: JsonDict, what: str) -> RowRefused:
    return RowRefused(
        "malformed tool call",
        f"call of {function['name']}: its arguments are {what} ({function['arguments'][:40]!r}); "
        'write them as a JSON object in a string, such as "{}"',
    )


def _tools(tools: str | None) -> list[JsonDict] | None:
    """Tools in the order of OpenAI's API, which is the order that servers hand them to the template in.

    Canonical JSON sorts names; the ones inside `parameters` stay sorted.
    """
    if tools is None:
        return None
    found = []
    for tool in json.loads(tools):
        ordered = _in_order(tool, _TOOL_ORDER)
        if isinstance(ordered.get("function"), dict):
            ordered["function"] = _in_order(ordered["function"], _FUNCTION_ORDER)
        found.append(ordered)
    return found


def _in_order(value: JsonDict, names: Sequence[str]) -> JsonDict:
    first = {name: value[name] for name in names if name in value}
    return first | {name: item for name, item in value.items() if name not in first}
