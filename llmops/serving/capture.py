"""The recorder: who answered every response, the texts of a sample, and feedback; what the relay knows of capture.

Runs in the event loop and only appends to the writer's queues.
"""

from __future__ import annotations

import random
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from llmops.capture.config import CaptureSettings
from llmops.capture.interaction import Given, Served
from llmops.capture.keyring import ADVICE, PLAIN, VARIABLE, Keyring
from llmops.capture.redact import Redactor
from llmops.capture.writing import MAX_RESPONSE_ID, NewFeedback, Protection
from llmops.errors import ConfigError
from llmops.records import OPEN
from llmops.serving.capture_writer import Kept, Writer
from llmops.serving.request_log import Entry
from llmops.serving.requests import Call
from llmops.settings import now

MAX_NAME = 200
ASKING = ("messages", "prompt")
"""Fields of requests that are answered in words: embeddings have neither."""


class Recorder:
    """What one gateway keeps."""

    def __init__(self, settings: CaptureSettings, database_url: str) -> None:
        """Prepare; `start` opens the database.

        Raises:
            ConfigError: texts are to be kept and there is no key, or presidio is asked for and not installed.
        """
        self.settings = settings
        self.protection = protection_of(settings)
        self.writer = Writer(settings, self.protection, database_url)
        self._random = random.Random()

    def start(self) -> None:
        """Begin to write."""
        self.writer.start()

    def stop(self) -> None:
        """Write what waits; blocks."""
        self.writer.stop()

    def keep(self, call: Call, always: bool = False) -> Kept | None:
        """Where a request's answer is gathered if it is in the sample; `always`: it is, when texts are kept at all."""
        settings = self.settings
        if (
            not settings.on
            or call.body.keys().isdisjoint(ASKING)
            or not (always or self._random.random() < settings.sample_frac)
        ):
            return None
        return Kept(call, settings.max_text_bytes)

    def add(self, entry: Entry, call: Call, kept: Kept | None, complete: bool) -> None:
        """Queue a response that is over; one without an id was never begun, and is nothing to keep."""
        if entry.response_id is not None:
            self.writer.put(_served_of(entry, call, complete), kept)

    def add_shadow(self, shown: Entry, shadow: Entry, call: Call, body: bytes) -> None:
        """Queue a shadow's whole answer to `call`, which nobody saw; `shown` is the response that was shown.

        Its texts are kept where those of the response are: the two are a pair to compare.
        """
        if shown.response_id is None or shadow.response_id is None:
            return
        served = replace(_served_of(shadow, call, True), shadow_of=shown.response_id[:MAX_RESPONSE_ID])
        kept = Kept(call, self.settings.max_text_bytes) if shown.captured else None
        if kept is not None:
            kept.add(body)
        self.writer.put(served, kept)

    def give(self, new: NewFeedback) -> Future[Given]:
        """Queue feedback: see `Writer.give`."""
        return self.writer.give(new)

    def status(self) -> dict[str, Any]:
        """What is kept, under which key, what waits, and what was dropped."""
        return {
            "sample_frac": self.settings.sample_frac,
            "key": self.protection.keyring.writer,
            "n_waiting": self.writer.n_waiting,
            "n_waiting_bytes": self.writer.n_waiting_bytes,
            "counts": dict(sorted(self.writer.counts.items())),
        }


def protection_of(settings: CaptureSettings) -> Protection:
    """How this profile's texts are made safe, with the keys of the environment.

    Raises:
        ConfigError: texts are to be kept encrypted and there is no key, or a recogniser is not installed.
    """
    keyring = Keyring.of_environment()
    if settings.encryption == PLAIN:
        keyring = keyring.plain()
    elif settings.on and keyring.writer is None:
        raise ConfigError(
            f"capture: texts are kept encrypted, and {VARIABLE} is not set; {ADVICE}, or set capture.sample_frac to 0"
        )
    return Protection(keyring, Redactor(settings))


def _served_of(entry: Entry, call: Call, complete: bool) -> Served:
    return Served(
        response=(entry.response_id or "")[:MAX_RESPONSE_ID],
        at=now(),
        tenant=entry.tenant or OPEN.tenant,
        user=entry.user,
        asked=call.asked[:MAX_NAME],
        adapter=entry.answered_by or "",
        lineage=entry.lineage,
        arm=entry.arm,
        shadow_of=None,
        n_answers=n_answers(call),
        complete=complete,
    )


def n_answers(call: Call) -> int:
    """How many answers a request asks for."""
    prompt = call.body.get("prompt")
    n_prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    return n_prompts * (call.body.get("n") or 1)
