"""One answer being generated: its prompt, its random stream, its text so far, and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from llmops.engines.embedded.adapters import BASE
from llmops.engines.embedded.detokenize import StopScanner, TextStream
from llmops.engines.embedded.grammar import Form, Grammars
from llmops.engines.embedded.sampling import Sampling, TokenLogprob, make_generator


@dataclass(frozen=True)
class Progress:
    """What is new on one row: all of the answer at once, or a piece of a stream.

    `finish_reason` is "stop", "length" or, with `error` set, "error"; None while the row runs. `stop_reason`
    is the stop string or stop token id that ended it (None for end of sequence). `prompt` comes with the
    first piece, when prompt log-probabilities were asked for.
    """

    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt: tuple[TokenLogprob, ...] | None = None
    error: str | None = None


@dataclass(frozen=True)
class RowRequest:
    """One answer to generate: `adapter` is a bank entry; `stream` asks for pieces instead of the whole."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    adapter: str = BASE
    stream: bool = False


class Row:
    """A request in the batch. The worker thread alone changes it; others may set `cancelled`."""

    def __init__(self, request: RowRequest, sink: Callable[[Progress], None]) -> None:
        """Keep the request; `sink` receives its progress on the event loop."""
        self.request = request
        self.sink = sink
        self.cancelled = False
        self.finish_reason: str | None = None
        self.generator: torch.Generator
        self.form: Form | None = None
        self.prompt: list[TokenLogprob] = []
        self._stop_reason: int | str | None = None
        self._n_generated = 0
        self._last_id = -1
        self._new_text = ""
        self._new_tokens: list[TokenLogprob] = []
        self._prompt_reported = False
        self._error: str | None = None

    def begin(self, tokenizer: Any, device: torch.device, grammars: Grammars) -> None:
        """Make ready to generate."""
        sampling = self.request.sampling
        self.form = grammars.form(sampling.grammar) if sampling.grammar is not None else None
        self.generator = make_generator(sampling.seed, device)
        self._text = TextStream(tokenizer, self.request.prompt_ids, sampling.skip_special_tokens)
        self._scanner = StopScanner(sampling.stop)

    @property
    def last_id(self) -> int:
        """The newest token, which the next step reads."""
        return self._last_id

    def accept(self, token: TokenLogprob, eos_ids: frozenset[int]) -> None:
        """Add one token; sets `finish_reason` where it ends the answer. Ending tokens leave no text."""
        sampling = self.request.sampling
        self._n_generated += 1
        self._last_id = token.token_id
        self._new_tokens.append(token)
        if token.token_id in sampling.stop_token_ids:
            self._finish("stop", token.token_id)
        elif token.token_id in eos_ids and not sampling.ignore_eos:
            self._finish("stop", None)
        else:
            self._say(self._text.push(token.token_id))
            if self.finish_reason is None and self._formed(token.token_id) and self.finish_reason is None:
                self._finish("stop", None)
            if self.finish_reason is None and self._n_generated >= sampling.max_tokens:
                self._finish("length", None)

    def _formed(self, token_id: int) -> bool:
        """Go on in the answer's form; whether it is complete."""
        if self.form is None:
            return False
        self.form.accept(token_id)
        self._error = self.form.problem
        if self._error is not None:
            self.finish_reason = "error"
        return self.form.done

    def end_without_tokens(self) -> None:
        """Finish a row that wanted its prompt's log-probabilities and no answer."""
        self.finish_reason = "length"

    def take_progress(self) -> Progress | None:
        """Return what is new since the last call, or None where there is nothing to send yet."""
        if self.finish_reason is None and not (self.request.stream and self._new_tokens):
            return None
        prompt = None
        if self.prompt and not self._prompt_reported:
            prompt, self._prompt_reported = tuple(self.prompt), True
        progress = Progress(
            self._new_text,
            tuple(self._new_tokens),
            self.finish_reason,
            self._stop_reason,
            prompt,
            self._error,
        )
        self._new_text, self._new_tokens = "", []
        return progress

    def _finish(self, reason: str, stop_reason: int | str | None) -> None:
        self._say(self._text.flush())
        if self.finish_reason is None:
            self._new_text += self._scanner.flush()
            self.finish_reason, self._stop_reason = reason, stop_reason

    def _say(self, piece: str) -> None:
        self._new_text += self._scanner.push(piece)
        if self._scanner.found is not None:
            self.finish_reason, self._stop_reason = "stop", self._scanner.found
