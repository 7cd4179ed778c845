"""Requests of the OpenAI endpoint as this engine understands them: pydantic outside, frozen records inside.

Fields that only steer other engines are accepted and ignored (IGNORED). Fields that would change the answer
and are not implemented are accepted at their neutral value alone (NEUTRAL). Anything else is refused by name:
an answer that silently disregards what was asked would be evaluated as if it had not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from llmops.engines.embedded.messages import (
    Message,
    RequestRefused,
    ResponseFormat,
    Strict,
    StructuredOutputs,
    Tool,
)
from llmops.engines.embedded.sampling import Sampling

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "cache_salt",
        "request_id",
    }
    | {"session_id", "priority", "spaces_between_special_tokens"}
    # vllm-router writes these into every body, for models that reason.
    | {"separate_reasoning", "stream_reasoning", "include_reasoning"}
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "min_tokens": (None, 0),
    "bad_words": (None, []),
    "include_stop_str_in_output": (None, False),
    "truncate_prompt_tokens": (None,),
    "prompt_logprobs": (None,),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "reasoning_effort": (None,),
    "modalities": (None, ["text"]),
    "no_stop_trim": (None, False),  # vllm-router writes these two, too
    "return_hidden_states": (None, False),
}
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
MAX_N = 16
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's and vLLM's default of /v1/completions; chat defaults to what the context leaves."""

Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenIds = list[Annotated[int, Field(ge=0)]]


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool | None = False
    continuous_usage_stats: Literal[False] | None = False


class _Generation(Strict):
    """The fields that chat and plain completions share."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = 1
    seed: Seed | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: TokenIds | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = True
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    def sampling(self, max_tokens: int, n_logprobs: int | None, n_prompt_logprobs: int | None) -> Sampling:
        """Return the record of how each row generates."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            seed=self.seed,
            stop=tuple(stops),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            skip_special_tokens=self.skip_special_tokens is not False,
            n_logprobs=n_logprobs,
            n_prompt_logprobs=n_prompt_logprobs,
        )


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class CompletionRequest(_Generation):
    """POST /v1/completions; the prompt is text or token ids, or a list of either."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = False
    add_special_tokens: bool | None = True


class LoadAdapterRequest(Strict):
    """POST /v1/load_lora_adapter."""

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False


class UnloadAdapterRequest(Strict):
    """POST /v1/unload_lora_adapter."""

    lora_name: str = ""
    lora_int_id: int | None = None


@dataclass(frozen=True)
class Prompt:
    """One prompt as token ids, with the text an echo returns (None: decode the ids)."""

    ids: tuple[int, ...]
    text: str | None


@dataclass(frozen=True)
class Call:
    """A request ready to run: every prompt is answered `n` times. `tools`: calls are looked for in the answers."""

    chat: bool
    model: str
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    n: int
    stream: bool
    include_usage: bool
    echo: bool = False
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    tools: bool = False


RequestT = TypeVar("RequestT", bound=BaseModel)


def parse(body: object, kind: type[RequestT]) -> RequestT:
    """Return the request as `kind`; raises RequestRefused naming the first field that cannot be served."""
    if not isinstance(body, dict):
        raise RequestRefused("the request body must be a JSON object")
    wanted = {}
    for name, value in body.items():
        if name in NEUTRAL and name not in kind.model_fields:
            if value not in NEUTRAL[name]:
                raise RequestRefused(
                    f"{name}: {str(value)[:100]!r} is not supported by the transformers engine; leave it out",
                    name,
                )
        elif name not in IGNORED:
            wanted[name] = value
    try:
        return kind.model_validate(wanted)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or None
        top = str(first["loc"][0]) if first["loc"] else None
        if first["type"] == "extra_forbidden":
            raise RequestRefused(f"{field}: not a field this engine supports; leave it out", top) from error
        raise RequestRefused(f"{field}: {first['msg']} (got {str(first['input'])[:100]!r})", top) from error
