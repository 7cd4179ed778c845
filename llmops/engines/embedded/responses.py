"""Response bodies in OpenAI's shape with vLLM's additions (stop_reason, token_ids), from rows' progress.

Log-probabilities under -9999 are reported as -9999, as in vLLM: JSON has no infinity.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llmops.engines.embedded.calls import CallScanner, split_calls
from llmops.engines.embedded.protocol import Call, Prompt
from llmops.engines.embedded.row import Progress
from llmops.engines.embedded.sampling import TokenLogprob

Body = dict[str, Any]
LOWEST_LOGPROB = -9999.0


def error_body(message: str, status: int, param: str | None = None, kind: str | None = None) -> Body:
    """Return OpenAI's error object; `kind` overrides the type name that vLLM gives to `status`."""
    kind = kind or ERROR_TYPES.get(status, "APIError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


ERROR_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    405: "MethodNotAllowed",
    413: "RequestEntityTooLarge",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


@dataclass
class Writer:
    """Builds the bodies of one call; `name` is the model name that the answer carries."""

    call: Call
    name: str
    tokenizer: Any
    n_generated: int = 0
    _offsets: dict[int, int] = field(default_factory=dict)
    _scanners: dict[int, CallScanner] = field(default_factory=dict)

    @cached_property
    def _head(self) -> Body:
        kind = "chat.completion" if self.call.chat else "text_completion"
        prefix = "chatcmpl" if self.call.chat else "cmpl"
        suffix = ".chunk" if self.call.chat and self.call.stream else ""
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind + suffix,
            "created": int(time.time()),
            "model": self.name,
        }

    @property
    def usage(self) -> dict[str, int]:
        """Prompt tokens once a prompt; tokens of all answers with their ends of sequence, as in vLLM."""
        n_prompt = sum(len(prompt.ids) for prompt in self.call.prompts)
        return {
            "prompt_tokens": n_prompt,
            "total_tokens": n_prompt + self.n_generated,
            "completion_tokens": self.n_generated,
        }

    def whole(self, answers: Sequence[Progress]) -> Body:
        """Return the body of a request that does not stream; `answers` in order of index."""
        choices = [self._choice(index, answer, first=True) for index, answer in enumerate(answers)]
        if self.call.chat:
            for choice in choices:
                choice["message"] = self._message(choice)
        return {**self._head, "choices": choices, "usage": self.usage}

    def _message(self, choice: Body) -> Body:
        text: str = choice.pop("text")
        calls: list[Body] = []
        if self.call.tools:
            text, calls = split_calls(text)
        message = {"role": "assistant", "content": text, "refusal": None}
        if not calls:
            return message
        if choice["finish_reason"] == "stop":
            choice["finish_reason"] = "tool_calls"
        return {**message, "content": text or None, "tool_calls": calls}

    def role_chunk(self, index: int) -> Body:
        """Return the chunk that opens answer `index` of a chat stream."""
        choice: Body = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        if self.call.return_token_ids:
            return {**self._head, "choices": [choice], "prompt_token_ids": list(self._prompt(index).ids)}
        return {**self._head, "choices": [choice]}

    def chunk(self, index: int, piece: Progress, first: bool) -> Body | None:
        """Return the chunk for a piece of answer `index`, or None where it would say nothing."""
        choice = self._choice(index, piece, first)
        calls = self._scanned(index, choice) if self.call.tools else []
        silent = not choice["text"] and piece.finish_reason is None
        if silent and not self.call.return_token_ids and choice["logprobs"] is None:
            return None
        if self.call.chat:
            text = choice.pop("text")
            choice["delta"] = {"content": text} if text or piece.finish_reason is None else {}
            if calls:
                choice["delta"]["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
        return {**self._head, "choices": [choice]}

    def _scanned(self, index: int, choice: Body) -> list[Body]:
        """Hold back what may be a tool call; with the last piece, the calls."""
        scanner = self._scanners.setdefault(index, CallScanner())
        choice["text"] = scanner.push(choice["text"])
        if choice["finish_reason"] is None:
            return []
        text, calls = scanner.end()
        choice["text"] += text
        if calls and choice["finish_reason"] == "stop":
            choice["finish_reason"] = "tool_calls"
        return calls

    def usage_chunk(self) -> Body:
        """Return the last chunk of a stream with `stream_options.include_usage`."""
        return {**self._head, "choices": [], "usage": self.usage}

    def _prompt(self, index: int) -> Prompt:
        return self.call.prompts[index // self.call.n]

    def _choice(self, index: int, answer: Progress, first: bool) -> Body:
        self.n_generated += len(answer.tokens)
        text, tokens = answer.text, answer.tokens
        if self.call.echo and first:
            prompt = self._prompt(index)
            text = self._prompt_text(prompt) + text
            tokens = (answer.prompt or ()) + tokens
        choice: Body = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, tokens),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self.call.return_token_ids:
            choice["token_ids"] = [token.token_id for token in answer.tokens]
            if first and not self.call.chat:
                choice["prompt_token_ids"] = list(self._prompt(index).ids)
        return choice

    def _prompt_text(self, prompt: Prompt) -> str:
        if prompt.text is not None:
            return prompt.text
        text: str = self.tokenizer.decode(list(prompt.ids))
        return text

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> Body | None:
        if self.call.sampling.n_logprobs is None:
            return None
        if self.call.chat:
            return {"content": [self._chat_logprob(token) for token in tokens]}
        return self._completion_logprobs(index, tokens)

    def _chat_logprob(self, token: TokenLogprob) -> Body:
        def entry(token_id: int, logprob: float | None) -> Body:
            text = self._token_text(token_id)
            return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}

        tops = [entry(token_id, logprob) for token_id, logprob in token.top]
        return {**entry(token.token_id, token.logprob), "top_logprobs": tops}

    def _completion_logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> Body:
        body: Body = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        offset = self._offsets.get(index, 0)
        for token in tokens:
            text = self._token_text(token.token_id)
            body["text_offset"].append(offset)
            body["tokens"].append(text)
            body["token_logprobs"].append(_finite(token.logprob))
            body["top_logprobs"].append(self._alternatives(token))
            offset += len(text)
        self._offsets[index] = offset
        return body

    def _alternatives(self, token: TokenLogprob) -> dict[str, float] | None:
        """The chosen token first, then the best; None for the first prompt token."""
        if token.logprob is None:
            return None
        shown = {self._token_text(token.token_id): max(token.logprob, LOWEST_LOGPROB)}
        for token_id, logprob in token.top:
            shown.setdefault(self._token_text(token_id), max(logprob, LOWEST_LOGPROB))
        return shown

    def _token_text(self, token_id: int) -> str:
        if self.call.tokens_as_ids:
            return f"token_id:{token_id}"
        text: str = self.tokenizer.decode([token_id])
        return text


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST_LOGPROB)
