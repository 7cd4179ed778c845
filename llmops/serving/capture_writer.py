"""The writer: one thread that parses, redacts, encrypts and stores what a gateway kept, in one transaction a batch.

Whoever queues never waits. Feedback is acknowledged once its transaction is durable. What the queue has no room for,
and what cannot be parsed or redacted, is dropped and counted by reason.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import orjson

from llmops.capture.answers import answers_of
from llmops.capture.config import CaptureSettings
from llmops.capture.interaction import Given, Served, texts_of_call
from llmops.capture.redact import NotRedacted
from llmops.capture.retention import purge
from llmops.capture.writing import (
    NewFeedback,
    Protection,
    SealedText,
    give_feedback,
    write_served,
    write_texts,
)
from llmops.db import open_database, writing
from llmops.errors import BadRequest, CouldNotRun, LlmopsError
from llmops.serving.requests import Call

GATHER_S = 0.1
RETRY_S = 1.0
PURGE_EVERY_S = 3600.0
BATCH = 256
MAX_WAITING = 50_000
MAX_FEEDBACK_WAITING = 2_000

log = logging.getLogger("llmops.serving")


class Kept:
    """What is gathered of one sampled request while it runs: what it says, and the answer's bytes as they came."""

    __slots__ = ("n_bytes", "parts", "room", "said", "streamed")

    def __init__(self, call: Call, room: int) -> None:
        """Keep at most `room` bytes; to be made before the body is rewritten for the engine."""
        self.said = orjson.dumps(texts_of_call(call.body))
        self.streamed = call.stream
        self.parts: list[bytes] = []
        self.n_bytes = len(self.said)
        self.room = room

    def add(self, data: bytes) -> None:
        """Take a piece of the engine's answer; what is too long is let go as a whole."""
        self.n_bytes += len(data)
        if self.n_bytes <= self.room:
            self.parts.append(data)
        elif self.parts:
            self.parts = []


@dataclass
class _Batch:
    """What one transaction writes."""

    served: list[Served] = field(default_factory=list)
    texts: list[SealedText] = field(default_factory=list)
    feedback: list[tuple[NewFeedback, Future[Given]]] = field(default_factory=list)
    n_bytes: int = 0  # that its texts took in the queue

    def __bool__(self) -> bool:
        return bool(self.served or self.texts or self.feedback)


class Writer:
    """The queues and the thread of one gateway."""

    def __init__(self, settings: CaptureSettings, protection: Protection, database_url: str) -> None:
        """Prepare; `start` begins to write to the database."""
        self.counts: Counter[str] = Counter()
        self.n_waiting_bytes = 0
        self._settings = settings
        self._protection = protection
        self._url = database_url
        self._served: deque[tuple[Served, Kept | None]] = deque()
        self._feedback: deque[tuple[NewFeedback, Future[Given]]] = deque()
        self._lock = threading.Lock()  # guards n_waiting_bytes
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._unwritten = _Batch()
        self._failing = False

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits and end the thread; blocks."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def n_waiting(self) -> int:
        """Responses that wait."""
        return len(self._served)

    def put(self, served: Served, kept: Kept | None) -> None:
        """Queue a response, and its texts if there is room for them."""
        if len(self._served) >= MAX_WAITING:
            self.counts["dropped: queue full"] += 1
            return
        self._served.append((served, kept if kept is not None and self._has_room(kept) else None))

    def give(self, new: NewFeedback) -> Future[Given]:
        """Queue feedback; the future is done once it is durable, or carries why it was not taken.

        Raises:
            CouldNotRun: too much waits already, or serving stops.
        """
        if len(self._feedback) >= MAX_FEEDBACK_WAITING or self._stopping:
            raise CouldNotRun("feedback: too much waits to be written; send it again shortly")
        future: Future[Given] = Future()
        self._feedback.append((new, future))
        self._wake.set()
        return future

    def _has_room(self, kept: Kept) -> bool:
        if kept.n_bytes > kept.room:
            self.counts["dropped: too long"] += 1
            return False
        with self._lock:
            if self.n_waiting_bytes + kept.n_bytes > self._settings.max_waiting_bytes:
                self.counts["dropped: queue full"] += 1
                return False
            self.n_waiting_bytes += kept.n_bytes
        return True

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        """Write until told to stop; then once more."""
        self._prepare()
        purged_at = float("-inf")
        while not self._stopping:
            self._wake.wait(RETRY_S if self._failing else GATHER_S)
            self._wake.clear()
            try:
                self._write_all()
                if time.monotonic() - purged_at > PURGE_EVERY_S:
                    purged_at = time.monotonic()
                    self._purge()
            except Exception:  # the thread must outlive whatever one batch does to it
                log.exception("capture: a fault of the gateway; its writer goes on")
        self._failing = False
        self._write_all()
        if self._unwritten:
            self.counts["dropped: not written"] += len(self._unwritten.texts)
            log.error("capture: %d responses could not be written", len(self._unwritten.served))
        for _, future in self._feedback:
            if future.set_running_or_notify_cancel():
                future.set_exception(CouldNotRun("feedback: serving has stopped; send it again"))

    def _prepare(self) -> None:
        try:
            self._protection.redactor.load()
        except Exception:  # what it cannot redact later is dropped and counted
            log.exception("capture: the recognisers of personal data cannot be loaded")

    def _write_all(self) -> None:
        """Write batch after batch until nothing waits, or the database does not take it."""
        while self._unwritten or self._served or self._feedback:
            batch = self._unwritten
            self._gather(batch)
            try:
                self._write(batch)
            except LlmopsError as error:
                self._refused(error)
                return
            except Exception:  # a row that the database does not take must not take the others with it
                self._write_each(batch)
            with self._lock:
                self.n_waiting_bytes -= batch.n_bytes
            self._unwritten = _Batch()
            self._failing = False

    def _gather(self, batch: _Batch) -> None:
        """Prepare what waits; what an earlier try could not write is still in the batch."""
        # Responses first, and all of them where feedback waits: it may be about the newest.
        room = MAX_WAITING if self._feedback else BATCH
        while self._served and len(batch.served) < room:
            served, kept = self._served.popleft()
            if served.user is not None:
                mark = self._protection.keyring.mark(served.tenant, served.user)
                served = replace(served, user=mark)
            batch.served.append(served)
            if kept is not None:
                batch.n_bytes += kept.n_bytes
                self._take(served, kept, batch)
        while self._feedback and len(batch.feedback) < BATCH:
            new, future = self._feedback.popleft()
            if future.set_running_or_notify_cancel():  # else nobody waits for it any more
                batch.feedback.append((new, future))

    def _take(self, served: Served, kept: Kept, batch: _Batch) -> None:
        try:
            answers = answers_of(b"".join(kept.parts), kept.streamed)
            value = {**orjson.loads(kept.said), "answers": answers}
            batch.texts.append(self._protection.sealed(served.response, served.at, value))
        except ValueError:
            self.counts["dropped: unreadable answer"] += 1
        except NotRedacted as rule:
            self.counts["dropped: not redacted"] += 1
            log.warning("capture: rule %s did not work on a text, which is not kept", rule)

    def _write(self, batch: _Batch) -> None:
        outcomes: list[Given | Exception] = []
        with writing(open_database(self._url)) as connection:
            write_served(connection, batch.served)
            write_texts(connection, batch.texts)
            for new, _ in batch.feedback:
                try:
                    outcomes.append(give_feedback(connection, new, self._protection))
                except (BadRequest, NotRedacted) as error:
                    outcomes.append(error)
        self.counts["responses"] += len(batch.served)
        self.counts["texts"] += len(batch.texts)
        for (_, future), outcome in zip(batch.feedback, outcomes, strict=True):
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                self.counts["feedback"] += not outcome.repeated
                future.set_result(outcome)

    def _write_each(self, batch: _Batch) -> None:
        """Write the parts of a batch one by one; those that cannot be stored are dropped, counted and told."""
        texts = {text.row: text for text in batch.texts}
        for served in batch.served:
            own = [texts[served.response]] if served.response in texts else []
            try:
                self._write(_Batch([served], own))
            except Exception as error:
                self.counts["dropped: not written"] += 1
                log.error("capture: response %s cannot be stored: %s", served.response, error)
        for new, future in batch.feedback:
            try:
                self._write(_Batch(feedback=[(new, future)]))
            except Exception as error:
                log.error("capture: feedback about %s cannot be stored: %s", new.response, error)
                future.set_exception(CouldNotRun("feedback: the database did not take it"))

    def _refused(self, error: LlmopsError) -> None:
        """The database takes nothing now: feedback is told so, the rest waits for the next try."""
        for _, future in self._unwritten.feedback:
            future.set_exception(CouldNotRun("feedback: the database did not take it; send it again shortly"))
        self._unwritten.feedback = []
        if not self._failing:
            log.error("capture: %s", error)
        self._failing = True

    def _purge(self) -> None:
        try:
            deleted = purge(open_database(self._url), self._settings)
        except LlmopsError as error:
            log.error("capture: nothing was purged: %s", error)
            return
        if deleted.anything:
            log.info("capture: %d texts are past their time and gone", deleted.n_texts)
