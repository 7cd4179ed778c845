"""The response cache: answers to requests that would be answered the same again, kept in memory for a while.

Only requests that say so themselves are looked up: temperature 0, or a seed. The key holds the tenant, the model that
answers (digest, prompt contract, engine) and the body, so that a name that moves never gives an old answer. Each hit
is a response with an id of its own. Bounded in bytes and age; gone when serving stops.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass

import orjson

from llmops.serving.http import Header
from llmops.serving.profile import ResponseCacheSettings
from llmops.serving.request_log import Entry
from llmops.serving.requests import Call
from llmops.serving.target import Target

IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "cache_salt")
"""Fields that change nothing in an answer."""
STREAM_END = b"data: [DONE]\n\n"
_LARGEST_FRAC = 8  # an answer may take at most this part of the whole cache
_OVERHEAD_BYTES = 600  # of an entry beside its answer, measured


@dataclass(frozen=True)
class CachedAnswer:
    """An answer as its client got it: JSON, or the events of a stream. `response_id` stands in it."""

    data: bytes
    response_id: str
    n_prompt_tokens: int | None
    n_completion_tokens: int | None
    at: float  # time.monotonic()

    def again(self, age_s: float) -> tuple[bytes, str, Header]:
        """The answer under an id of its own, that id, and the header that tells how old the answer is."""
        prefix = re.match(r"[a-z]*-?", self.response_id)
        fresh = f"{prefix[0] if prefix else ''}{uuid.uuid4().hex}"
        data = self.data.replace(self.response_id.encode(), fresh.encode())
        return data, fresh, (b"age", str(int(age_s)).encode())


class Pending:
    """A request that was not in the cache; its answer is gathered as it is sent."""

    __slots__ = ("digest", "key", "n_bytes", "parts", "room")

    def __init__(self, key: bytes, digest: str, room: int) -> None:
        """Gather at most `room` bytes of what the model of that digest answers."""
        self.key = key
        self.digest = digest
        self.room = room
        self.n_bytes = 0
        self.parts: list[bytes] = []

    def add(self, data: bytes) -> None:
        """Take a piece of the answer; what is too long is let go as a whole."""
        self.n_bytes += len(data)
        if self.n_bytes <= self.room:
            self.parts.append(data)
        else:
            self.parts.clear()


class ResponseCache:
    """The answers of one gateway."""

    def __init__(self, settings: ResponseCacheSettings) -> None:
        """Begin empty."""
        self.settings = settings
        self.n_bytes = 0
        self.n_evicted = 0
        self._answers: OrderedDict[bytes, CachedAnswer] = OrderedDict()

    def key_of(self, call: Call, target: Target, tenant: str) -> bytes | None:
        """What an answer is found under; None for a request that may be answered otherwise the next time.

        To be asked before the body is rewritten for the engine.
        """
        tenants = self.settings.tenants
        if not is_deterministic(call) or not (tenants == "all" or tenant in tenants):
            return None
        body = {name: value for name, value in call.body.items() if name not in IGNORED}
        said = [tenant, target.digest, target.engine, target.contract.digest(), call.asked, call.chat, body]
        return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).digest()

    def find(self, key: bytes) -> tuple[CachedAnswer, float] | None:
        """The answer under a key with its age in seconds."""
        found = self._answers.get(key)
        age_s = time.monotonic() - found.at if found is not None else 0.0
        if found is not None and age_s > self.settings.max_age_s:
            self._remove(key)
            found = None
        if found is None:
            return None
        self._answers.move_to_end(key)
        return found, age_s

    def pending(self, key: bytes, digest: str) -> Pending:
        """What gathers the answer to a request that was not found; `digest` is of the model the key names."""
        return Pending(key, digest, self.settings.max_bytes // _LARGEST_FRAC)

    def put(self, pending: Pending, entry: Entry, streamed: bool) -> None:
        """Keep an answer that came to its end; one that another model gave in its place is not this key's."""
        data = b"".join(pending.parts)
        if not data or entry.response_id is None or entry.answered_by != pending.digest:
            return
        if streamed and not data.endswith(STREAM_END):
            return
        counts = (entry.n_prompt_tokens, entry.n_completion_tokens)
        self._remove(pending.key)
        self._answers[pending.key] = CachedAnswer(data, entry.response_id, *counts, time.monotonic())
        self.n_bytes += len(data) + _OVERHEAD_BYTES
        while self.n_bytes > self.settings.max_bytes:
            self._remove(next(iter(self._answers)))
            self.n_evicted += 1

    def __len__(self) -> int:
        """How many answers are kept."""
        return len(self._answers)

    def _remove(self, key: bytes) -> None:
        found = self._answers.pop(key, None)
        if found is not None:
            self.n_bytes -= len(found.data) + _OVERHEAD_BYTES


def is_deterministic(call: Call) -> bool:
    """Whether a request asks for the same answer every time: temperature 0, or a seed."""
    temperature, seed = call.body.get("temperature"), call.body.get("seed")
    greedy = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    return greedy or (isinstance(seed, int) and not isinstance(seed, bool))
