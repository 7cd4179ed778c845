"""What is done beside a completion: a place in the sample, a look into the response cache, and a note at the end."""

from __future__ import annotations

from dataclasses import dataclass

from llmops.serving.capture import Recorder
from llmops.serving.capture_writer import Kept
from llmops.serving.exchange import Tap
from llmops.serving.http import Header, Scope, header
from llmops.serving.request_log import Entry
from llmops.serving.requests import Call
from llmops.serving.response_cache import Pending, ResponseCache
from llmops.serving.rollout.shadow import ShadowAnswer
from llmops.serving.routes import Choice

CACHE_HEADER = b"x-llmops-cache"
HIT, MISS = "hit", "miss"
OK = 200


@dataclass
class Observed:
    """One request under way. `hit`: the answer the cache had, as it is to be sent; `call` None: it did not get far."""

    call: Call | None = None
    kept: Kept | None = None
    pending: Pending | None = None
    hit: bytes | None = None
    headers: tuple[Header, ...] = ()

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What gathers the answer."""
        return tuple(tap for tap in (self.kept, self.pending) if tap is not None)


class Observer:
    """Recorder and response cache of one gateway; `cache` None: there is none."""

    def __init__(self, recorder: Recorder, cache: ResponseCache | None) -> None:
        """Use these."""
        self.recorder = recorder
        self.cache = cache

    def begin(
        self, observed: Observed, scope: Scope, call: Call, how: tuple[Choice, Entry, bool]
    ) -> Observed:
        """Note that a request is about to be answered; `how`: by which choice, its entry, and whether it is shadowed.

        What is shadowed is kept, where texts are kept at all: the two answers are a pair.
        """
        choice, entry, shadowed = how
        observed.call = call
        observed.kept = self.recorder.keep(call, always=shadowed)
        entry.captured = observed.kept is not None
        if self.cache is None or choice.cascade is not None:
            return observed
        key = self.cache.key_of(call, choice.target, entry.tenant or "")
        if key is None or b"no-" in (header(scope, b"cache-control") or b""):  # no-cache, no-store
            return observed
        found = self.cache.find(key)
        if found is None:
            observed.pending = self.cache.pending(key, choice.target.digest)
            entry.cache = MISS
            observed.headers = ((CACHE_HEADER, MISS.encode()),)
            return observed
        answer, age_s = found
        observed.hit, entry.response_id, age = answer.again(age_s)
        entry.n_prompt_tokens, entry.n_completion_tokens = answer.n_prompt_tokens, answer.n_completion_tokens
        entry.cache = HIT
        observed.headers = ((CACHE_HEADER, HIT.encode()), age)
        return observed

    def end(self, observed: Observed, entry: Entry) -> None:
        """Note that the request is over, as its entry says."""
        if observed.call is None:
            return
        finished = entry.status == OK and entry.error is None
        self.recorder.add(entry, observed.call, observed.kept, finished)
        if finished and self.cache is not None and observed.pending is not None:
            self.cache.put(observed.pending, entry, observed.call.stream)

    def shadow(self, answer: ShadowAnswer) -> None:
        """Keep what a shadow answered."""
        self.recorder.add_shadow(answer.shown, answer.entry, answer.call, answer.body)
