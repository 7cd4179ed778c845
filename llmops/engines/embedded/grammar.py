"""What an answer must look like: JSON schema, regular expression or choice, held to by masking tokens (llguidance).

A grammar is compiled once and copied for every row. The mask is taken before the token is chosen; the
log-probabilities that are reported stay those of the model.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any

import torch

from llmops.engines.embedded.messages import RequestRefused, ResponseFormat, StructuredOutputs

N_KEPT = 64


class Form:
    """One answer's way through its grammar."""

    def __init__(self, matcher: Any) -> None:
        """Begin at the start of `matcher`, which is this answer's own."""
        self._matcher = matcher

    @property
    def done(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def problem(self) -> str | None:
        """Why the grammar cannot be followed any further (its limits)."""
        return str(self._matcher.get_error()) if self._matcher.is_error() else None

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [V] with every token that may not come next at -inf."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        banned = torch.ones(logits.shape[0], dtype=torch.bool)
        n = min(len(allowed), len(banned))
        banned[:n] = allowed[:n] == 0
        return logits.masked_fill(banned.to(logits.device), -torch.inf)

    def accept(self, token_id: int) -> None:
        """Go on by the token that was chosen."""
        self._matcher.consume_token(token_id)


class Grammars:
    """The grammars of one tokenizer. May be used from any thread."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Iterable[int]) -> None:
        """Nothing is built before the first grammar."""
        self._tokenizer, self._vocab_size, self._eos_ids = tokenizer, vocab_size, sorted(eos_ids)
        self._lock = threading.Lock()
        self._compiled = lru_cache(N_KEPT)(self._compile)

    def check(self, grammar: str) -> None:
        """Compile a grammar.

        Raises:
            RequestRefused: it is wrong, or asks for what the library does not have.
        """
        with self._lock:
            self._compiled(grammar)

    def form(self, grammar: str) -> Form:
        """A new answer's form; the grammar was checked before."""
        with self._lock:
            return Form(self._compiled(grammar).deep_copy())

    def _compile(self, grammar: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tables, grammar, log_level=0)
        if matcher.is_error():
            reason = " ".join(str(matcher.get_error()).split())[:300]
            raise RequestRefused(f"response_format: cannot be followed ({reason})", "response_format")
        return matcher

    @cached_property
    def _tables(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, n_vocab=self._vocab_size, eos_token=self._eos_ids)


def grammar_of(wanted: ResponseFormat | None, structured: StructuredOutputs | None) -> str | None:
    """The grammar that a request asks for, as llguidance writes it; None for free text.

    Raises:
        RequestRefused: more than one is asked for, or a schema that is none.
    """
    asked = [*_of_format(wanted), *_of_structured(structured)]
    if len(asked) > 1:
        raise RequestRefused("structured_outputs: ask for one form of the answer", "structured_outputs")
    return asked[0] if asked else None


def _of_format(wanted: ResponseFormat | None) -> list[str]:
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type == "json_object":
        return [_of_schema({"type": "object"})]
    if wanted.json_schema is None:
        raise RequestRefused("response_format: json_schema is missing", "response_format")
    return [_of_schema(wanted.json_schema.schema_)]


def _of_structured(structured: StructuredOutputs | None) -> list[str]:
    from llguidance import LLMatcher

    found: list[str] = []
    if structured is None:
        return found
    if structured.json_ is not None:
        found.append(_of_schema(structured.json_))
    if structured.regex is not None:
        found.append(LLMatcher.grammar_from_regex(structured.regex))
    if structured.choice is not None:
        found.append(LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, structured.choice))))
    return found


def _of_schema(schema: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    try:  # a small model may write blanks for ever where JSON allows them
        return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
    except ValueError as error:
        raise RequestRefused(f"response_format: no JSON schema ({error})", "response_format") from error
