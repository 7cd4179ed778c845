"""The worker thread that owns the model: admits waiting rows, prefills them, and steps the running batch.

Between any two steps rows may join (prefill, then merge on the left-padded cache), leave (finished or
cancelled) and adapters may come and go. Nothing else touches the model.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from llmops.engines.embedded.cache import KVBlock
from llmops.engines.embedded.model import LanguageModel
from llmops.engines.embedded.row import Progress, Row
from llmops.engines.embedded.sampling import TokenLogprob, logprobs_of, pick_tokens
from llmops.errors import CouldNotRun

PREFILL_TOKENS = 2048
"""Padded prompt tokens that one prefill reads before the running rows get their next step."""

ECHO_CHUNK_TOKENS = 512
"""Positions whose logits are held at once for prompt log-probabilities: 512 x 150k x 4 bytes is 0.3 GB."""

log = logging.getLogger(__name__)


class QueueFull(CouldNotRun):
    """The waiting queue has no room for these rows; the client should come back."""


@dataclass(frozen=True)
class Limits:
    """Rows that run at once and rows that may wait for a place."""

    max_num_seqs: int = 32
    max_waiting: int = 256


class Batcher:
    """Rows in, progress out. Public methods may be called from any thread."""

    def __init__(self, model: LanguageModel, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        """Serve `model`; sinks are called on `loop`."""
        self.limits = limits
        self._model = model
        self._loop = loop
        self._wake = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stopping = False
        self._running: list[Row] = []
        self._block = KVBlock([])
        self._retiring: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Start the worker thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the worker after the step in hand; rows still running are left unanswered."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the worker thread runs."""
        return self._thread.is_alive()

    @property
    def n_running(self) -> int:
        """Rows in the batch."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Rows that wait for a place."""
        return len(self._waiting)

    def submit(self, rows: list[Row]) -> None:
        """Queue the rows of one request, all or none; raises QueueFull."""
        with self._wake:
            if len(self._waiting) + len(rows) > self.limits.max_waiting:
                raise QueueFull(f"{len(self._waiting)} rows wait already (limit {self.limits.max_waiting})")
            self._waiting.extend(rows)
            self._wake.notify()

    def cancel(self, rows: list[Row]) -> None:
        """Let go of rows whose client is gone: waiting ones never start, others leave before a step."""
        with self._wake:
            for row in rows:
                row.cancelled = True
            self._wake.notify()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run `function` on the worker thread between two steps."""
        future: Future[Any] = Future()
        with self._wake:
            self._commands.append((function, future))
            self._wake.notify()
        return future

    def retire(self, adapter: str) -> None:
        """Detach a bank entry once the last row that uses it has left."""
        self.call(lambda: self._retiring.add(adapter))

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._run_commands()
                try:
                    self._drop_cancelled()
                    self._admit()
                    self._step()
                except Exception as error:
                    broken, self._running, self._block = self._running, [], KVBlock([])
                    self._fail(broken, error)
                self._detach_retired()
        except BaseException:
            log.exception("the model thread died")
            raise

    def _wait_for_work(self) -> bool:
        """Sleep while there is nothing to do; False ends the thread."""
        with self._wake:
            while not (self._stopping or self._waiting or self._running or self._commands):
                self._wake.wait()
            return not self._stopping

    def _run_commands(self) -> None:
        while self._commands:
            function, future = self._commands.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                # The slot of an adapter that was unloaded is free for a load that waits right behind it.
                self._drop_cancelled()
                self._detach_retired()
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def _drop_cancelled(self) -> None:
        with self._wake:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
        self._keep([row for row in self._running if not row.cancelled])

    def _keep(self, rows: list[Row]) -> None:
        """Shrink the batch to `rows`."""
        if len(rows) < len(self._running):
            order = self._block.keep([i for i, row in enumerate(self._running) if row in rows])
            self._running = [self._running[i] for i in order]

    def _admit(self) -> None:
        """Prefill what fits into the batch and into one prefill's budget, oldest first."""
        group = self._next_group()
        if not group:
            return
        try:
            for row in group:
                row.begin(self._model.tokenizer, self._model.device, self._model.grammars)
            block, logits = self._prefill(group)
            self._accept(group, logits)
        except Exception as error:
            self._fail(group, error)
            return
        self._publish(group)
        staying = [i for i, row in enumerate(group) if row.finish_reason is None]
        if staying:
            self._running = self._running + [group[i] for i in block.keep(staying)]
            self._block.join(block)

    def _next_group(self) -> list[Row]:
        group: list[Row] = []
        width = 0
        with self._wake:
            while self._waiting and len(self._running) + len(group) < self.limits.max_num_seqs:
                row = self._waiting[0]
                width = max(width, len(row.request.prompt_ids))
                if group and (width * (len(group) + 1) > PREFILL_TOKENS or _echoes(row) != _echoes(group[0])):
                    break
                group.append(self._waiting.popleft())
        return group

    def _prefill(self, group: list[Row]) -> tuple[KVBlock, torch.Tensor]:
        """Read the prompts in chunks; return their cache and the fp32 logits [B, V] after the last token."""
        prompts = [row.request.prompt_ids for row in group]
        width = max(len(prompt) for prompt in prompts)
        padding = [width - len(prompt) for prompt in prompts]
        ids = [
            [self._model.pad_id] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)
        ]
        adapters = [row.request.adapter for row in group]
        echo = _echoes(group[0])
        step = max(1, (ECHO_CHUNK_TOKENS if echo else PREFILL_TOKENS) // len(group))
        block = KVBlock([0] * len(group))
        for start in range(0, width, step):
            end = min(start + step, width)
            block.lengths = [max(0, end - pad) for pad in padding]
            chunk = [row_ids[start:end] for row_ids in ids]
            logits = self._model.forward(chunk, block, adapters, keep=end - start if echo else 1)
            if echo:
                for row, pad, row_logits in zip(group, padding, logits, strict=True):
                    _score_prompt(row, max(start - pad, 0), row_logits[max(pad - start, 0) :])
        return block, logits[:, -1]

    def _step(self) -> None:
        """Generate one token on every running row."""
        if not self._running:
            return
        rows = self._running
        self._block.lengths = [n + 1 for n in self._block.lengths]
        logits = self._model.forward(
            [[row.last_id] for row in rows], self._block, [row.request.adapter for row in rows], keep=1
        )
        self._accept(rows, logits[:, -1])
        self._publish(rows)
        self._keep([row for row in rows if row.finish_reason is None])

    def _accept(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Choose the next token of each row from fp32 logits [B, V] and hand it over with what it reports."""
        samplings = [row.request.sampling for row in rows]
        chosen = pick_tokens(_formed(rows, logits), samplings, [row.generator for row in rows])
        tokens = [TokenLogprob(token_id) for token_id in chosen]
        asked = [i for i, sampling in enumerate(samplings) if sampling.n_logprobs is not None]
        if asked:
            n_top = max(samplings[i].n_logprobs or 0 for i in asked)
            for i, scored in zip(
                asked, logprobs_of(logits[asked], [chosen[i] for i in asked], n_top), strict=True
            ):
                tokens[i] = TokenLogprob(
                    scored.token_id, scored.logprob, scored.top[: samplings[i].n_logprobs]
                )
        for row, token in zip(rows, tokens, strict=True):
            if row.request.sampling.max_tokens == 0:
                row.end_without_tokens()
            else:
                row.accept(token, self._model.eos_ids)

    def _publish(self, rows: list[Row]) -> None:
        news = [(row.sink, progress) for row in rows if (progress := row.take_progress()) is not None]
        if news:
            self._send(news)

    def _fail(self, rows: list[Row], error: Exception) -> None:
        """Answer rows whose step broke (out of memory, a fault of ours) and go on with the next ones."""
        log.error("a step of %d rows failed", len(rows), exc_info=error)
        reason = " ".join(str(error).split())[:300]
        failed = Progress(finish_reason="error", error=f"{type(error).__name__}: {reason}")
        self._send([(row.sink, failed) for row in rows])

    def _send(self, news: list[tuple[Callable[[Progress], None], Progress]]) -> None:
        self._loop.call_soon_threadsafe(_deliver, news)

    def _detach_retired(self) -> None:
        if self._retiring:
            with self._wake:
                used = {row.request.adapter for row in [*self._waiting, *self._running]}
            for adapter in self._retiring - used:
                self._model.adapters.detach(adapter)
            self._retiring &= used


def _deliver(news: list[tuple[Callable[[Progress], None], Progress]]) -> None:
    for sink, progress in news:
        sink(progress)


def _formed(rows: list[Row], logits: torch.Tensor) -> torch.Tensor:
    """The logits [B, V], without the tokens that a row's form does not allow next."""
    if all(row.form is None for row in rows):
        return logits
    pairs = zip(rows, logits, strict=True)
    return torch.stack([own if row.form is None else row.form.masked(own) for row, own in pairs])


def _echoes(row: Row) -> bool:
    return row.request.sampling.n_prompt_logprobs is not None


def _score_prompt(row: Row, first: int, logits: torch.Tensor) -> None:
    """Add the log-probabilities of the prompt tokens that `logits` [T, V] at positions first.. predict."""
    ids = row.request.prompt_ids
    if not row.prompt:
        row.prompt.append(TokenLogprob(ids[0]))
    targets = list(ids[first + 1 : first + 1 + len(logits)])
    if targets:
        n_top = row.request.sampling.n_prompt_logprobs or 0
        row.prompt.extend(logprobs_of(logits[: len(targets)], targets, n_top))
