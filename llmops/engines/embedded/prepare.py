"""From a parsed request to a Call: chat template, tokenization, and the limits that the model sets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from llmops.engines.embedded.grammar import Grammars, grammar_of
from llmops.engines.embedded.messages import RequestRefused
from llmops.engines.embedded.protocol import (
    DEFAULT_COMPLETION_TOKENS,
    Call,
    ChatRequest,
    CompletionRequest,
    Prompt,
)
from llmops.engines.embedded.sampling import Sampling


class Preparer:
    """Turns requests into token ids with the served tokenizer and chat template."""

    def __init__(self, tokenizer: Any, max_model_len: int, vocab_size: int, grammars: Grammars) -> None:
        """`max_model_len` bounds prompt and answer together, in tokens."""
        self.tokenizer = tokenizer
        self._grammars = grammars
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size

    def chat(self, request: ChatRequest) -> Call:
        """Render the conversation and ask for its next turn; raises RequestRefused."""
        _check_together(request)
        if request.top_logprobs and not request.logprobs:
            raise RequestRefused("top_logprobs: only allowed when logprobs is true", "top_logprobs")
        prompt = self._rendered(request)
        asked = request.max_completion_tokens or request.max_tokens
        max_tokens = self._answer_tokens(prompt, asked)
        n_logprobs = (request.top_logprobs or 0) if request.logprobs else None
        sampling = self._formed(request, request.sampling(max_tokens, n_logprobs, None))
        return _call(request, [prompt], sampling)

    def completion(self, request: CompletionRequest) -> Call:
        """Tokenize the prompts as they are; raises RequestRefused. `max_tokens` 0 needs `echo`."""
        _check_together(request)
        prompts = self._tokenized(request)
        asked = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
        if asked == 0 and not request.echo:
            raise RequestRefused("max_tokens must be at least 1, got 0.", "max_tokens")
        max_tokens = 0 if asked == 0 else min(self._answer_tokens(prompt, asked) for prompt in prompts)
        for prompt in prompts:
            self._check_fits(prompt)
        sampling = request.sampling(max_tokens, request.logprobs, request.logprobs if request.echo else None)
        return _call(request, prompts, self._formed(request, sampling))

    def _formed(self, request: ChatRequest | CompletionRequest, sampling: Sampling) -> Sampling:
        """The sampling, with the form that the answer must have."""
        grammar = grammar_of(request.response_format, request.structured_outputs)
        if grammar is None:
            return sampling
        self._grammars.check(grammar)
        return replace(sampling, grammar=grammar)

    def _rendered(self, request: ChatRequest) -> Prompt:
        turns = [message.flat() for message in request.messages]
        if self.tokenizer.chat_template is None:
            raise RequestRefused("messages: this model has no chat template; use /v1/completions", "messages")
        tools = _tools(request)
        if tools and "tools" not in self.tokenizer.get_chat_template(tools=tools):
            raise RequestRefused("tools: this model's chat template has no place for them", "tools")
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise RequestRefused(f"messages: the chat template refuses them ({error})", "messages") from error
        return Prompt(tuple(self.tokenizer.encode(text, add_special_tokens=False)), text)

    def _tokenized(self, request: CompletionRequest) -> list[Prompt]:
        given = request.prompt
        one = isinstance(given, str) or not given or isinstance(given[0], int)
        special = request.add_special_tokens is not False
        prompts = []
        for item in [given] if one else given:
            if isinstance(item, str):
                prompts.append(Prompt(tuple(self.tokenizer.encode(item, add_special_tokens=special)), item))
            else:
                prompts.append(Prompt(tuple(item), None))  # type: ignore[arg-type]
        return prompts

    def _answer_tokens(self, prompt: Prompt, asked: int | None) -> int:
        """Return how many tokens may be generated; the context's rest bounds what was asked, as in vLLM."""
        self._check_fits(prompt)
        left = self._max_model_len - len(prompt.ids)
        if left < 1:
            raise self._too_long(prompt, "which leaves none for the answer")
        return left if asked is None else min(left, asked)

    def _check_fits(self, prompt: Prompt) -> None:
        if not prompt.ids:
            raise RequestRefused("prompt: must contain at least one token", "prompt")
        if len(prompt.ids) > self._max_model_len:
            raise self._too_long(prompt, "which exceeds this limit even without any output tokens")
        if max(prompt.ids) >= self._vocab_size:
            raise RequestRefused(
                f"prompt: token id {max(prompt.ids)} is out of vocabulary ({self._vocab_size} ids)", "prompt"
            )

    def _too_long(self, prompt: Prompt, why: str) -> RequestRefused:
        return RequestRefused(
            f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt "
            f"contains {len(prompt.ids)} input tokens, {why}. Please reduce the length of the input prompt.",
            "input_tokens",
        )


def _call(request: ChatRequest | CompletionRequest, prompts: list[Prompt], sampling: Sampling) -> Call:
    options = request.stream_options
    return Call(
        chat=isinstance(request, ChatRequest),
        model=request.model or "",
        prompts=tuple(prompts),
        sampling=sampling,
        n=request.n or 1,
        stream=bool(request.stream),
        include_usage=bool(options and options.include_usage),
        echo=isinstance(request, CompletionRequest) and bool(request.echo),
        return_token_ids=bool(request.return_token_ids),
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        tools=isinstance(request, ChatRequest) and bool(_tools(request)),
    )


def _tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    """What the template is told of tools; None when the answer must not call any."""
    if not request.tools or request.tool_choice == "none":
        return None
    return [tool.model_dump(exclude_none=True) for tool in request.tools]


def _check_together(request: ChatRequest | CompletionRequest) -> None:
    """Raise RequestRefused for fields that contradict each other."""
    if request.stream_options is not None and not request.stream:
        raise RequestRefused("stream_options: only allowed when stream is true", "stream_options")
    sampling = request.sampling(1, None, None)
    if (request.n or 1) > 1 and sampling.greedy:
        raise RequestRefused(f"n must be 1 when using greedy sampling, got {request.n}.", "n")
    if "" in sampling.stop:
        raise RequestRefused("stop: an empty stop string would end every answer at once", "stop")
