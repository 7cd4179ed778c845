"""What a client may say: fields refused by name, and the rewriting of a request for the engine.

The engine is trusted with everything it is sent, so what would change the prompt contract, reach into the
engine's files and scheduling, or multiply work without bound stops here. Unknown fields pass: the engine
knows its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from llmops.serving.http import Refusal
from llmops.serving.profile import Limits
from llmops.serving.target import Target

REFUSED_FIELDS = {
    "chat_template": "the prompt contract sets it",
    "chat_template_kwargs": "the prompt contract sets it",
    "documents": "they would change the prompt contract",
    "mm_processor_kwargs": "only text models are served",
    "media_io_kwargs": "only text models are served",
    "vllm_xargs": "it reaches into the engine",
    "kv_transfer_params": "it reaches into the engine",
    "ec_transfer_params": "it reaches into the engine",
    "logits_processors": "it names code to run in the engine",
    "priority": "the gateway schedules",
    "request_id": "send the header x-request-id",
    "prompt_embeds": "only text and token ids are accepted",
}
MAX_USER_CHARACTERS = 128
FIXED_CHAT_FIELDS: dict[str, object] = {
    "add_generation_prompt": True,
    "continue_final_message": False,
    "add_special_tokens": False,
}
"""Fields of chat requests that would change the prompt contract at any other value than this."""


@dataclass(frozen=True)
class Call:
    """A client's request after its checks.

    `wants_usage`: the client asked for the usage chunk of a stream itself; `user`: whose request it is, as it says.
    """

    body: dict[str, Any]
    asked: str
    chat: bool
    stream: bool
    wants_usage: bool
    user: str | None = None


def check(body: dict[str, Any], chat: bool, limits: Limits) -> Call:
    """The request in `body`, for chat or plain completions.

    Raises:
        Refusal: 400 naming the field that is missing, refused or over its limit.
    """
    asked = _model_of(body)
    for name in ("n", "best_of"):
        _bounded(body, name, limits.max_n)
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise _bad("stream", f"is {str(stream)[:40]!r}; use true or false")
    if chat:
        _check_messages(body)
    else:
        _check_prompts(body, limits)
    return Call(body, asked, chat, stream, stream and _usage_option(body), _user_of(body))


def check_embeddings(body: dict[str, Any], limits: Limits) -> Call:
    """The request for embeddings in `body`.

    Raises:
        Refusal: 400 naming the field that is missing, refused or over its limit.
    """
    asked = _model_of(body)
    given = body.get("input")
    if not isinstance(given, str | list) or not given:
        raise _bad("input", "give a text, token ids, or a list of either")
    _bounded_list("input", given, limits)
    return Call(body, asked, False, False, False, _user_of(body))


def for_engine(call: Call, target: Target) -> bytes:
    """The body the engine gets: its own model name, the contract's system prompt, and usage counted in every stream."""
    # A copy: a fallback, a shadow or a cascade asks the same of another target.
    body = {**call.body, "model": target.engine_name}
    system = target.contract.system
    if call.chat and system is not None and body["messages"][0].get("role") != "system":
        body["messages"] = [{"role": "system", "content": system}, *body["messages"]]
    if call.stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return orjson.dumps(body)


def _bad(field: str, problem: str) -> Refusal:
    return Refusal(400, f"{field}: {problem}", param=field, code="invalid_field")


def _model_of(body: dict[str, Any]) -> str:
    """The model that is asked for, once no field is refused; takes fields off that are null."""
    asked = body.get("model")
    if not isinstance(asked, str) or not asked:
        raise _bad("model", "name a model; GET /v1/models lists them")
    for name in REFUSED_FIELDS.keys() & body.keys():
        if body.pop(name) is not None:
            raise _bad(name, f"is not accepted here ({REFUSED_FIELDS[name]}); leave it out")
    return asked


def _user_of(body: dict[str, Any]) -> str | None:
    user = body.get("user")
    if user is not None and (not isinstance(user, str) or len(user) > MAX_USER_CHARACTERS):
        raise _bad("user", f"is not a text of at most {MAX_USER_CHARACTERS} characters")
    return user


def _bounded(body: dict[str, Any], name: str, limit: int) -> None:
    value = body.get(name)
    if value is not None and (
        not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit
    ):
        raise _bad(name, f"is {str(value)[:40]}; use 1 to {limit}")


def _usage_option(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _bad("stream_options", "is not an object")
    return bool(options.get("include_usage"))


def _check_messages(body: dict[str, Any]) -> None:
    for name, only in FIXED_CHAT_FIELDS.items():
        if body.get(name) not in (None, only):
            raise _bad(name, "is not accepted here (it would change the prompt contract); leave it out")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _bad("messages", "give a list of at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _bad(f"messages[{i}]", "is not an object with role and content")
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or part.get("type") != "text":
                raise _bad(f"messages[{i}]", "has a part that is not text; only text models are served")


def _check_prompts(body: dict[str, Any], limits: Limits) -> None:
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list) or prompt == []:
        raise _bad("prompt", "give a text, token ids, or a list of either")
    _bounded_list("prompt", prompt, limits)


def _bounded_list(name: str, given: str | list[Any], limits: Limits) -> None:
    """Refuse more texts at once than the limit; a list of numbers is one text's token ids."""
    if isinstance(given, list) and not isinstance(given[0], int) and len(given) > limits.max_prompts:
        raise _bad(name, f"is a list of {len(given)}; send at most {limits.max_prompts} in one request")
