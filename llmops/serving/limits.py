"""How much a key may use: buckets of requests and tokens a minute, and a quota of tokens a day.

A request takes what it may need (its prompt, and all it may answer) before it runs and settles at its end, so that many
at once cannot overdraw a bucket; an answer that costs more than was set aside leaves a debt. What other gateways of the
database counted for a key is taken from its buckets here too, about a second later (`told`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from time import monotonic, time

from llmops.auth import KeyLimits
from llmops.serving.http import Header, Refusal

MINUTE_S, DAY_S = 60.0, 86_400
UNSAID_ANSWER_TOKENS = 256
"""Set aside for an answer whose length the request does not bound."""
BYTES_PER_TOKEN = 4


@dataclass
class Bucket:
    """Holds a minute's worth and fills evenly."""

    capacity: float
    level: float
    at: float  # seconds, of time.monotonic

    def wait_s(self, n: float, at: float) -> float:
        """Seconds until `n` can be taken; 0 when they can be now. More than a full bucket counts as a full one."""
        rate = self.capacity / MINUTE_S
        self.level = min(self.capacity, self.level + (at - self.at) * rate)
        self.at = at
        return max(0.0, (min(n, self.capacity) - self.level) / rate)

    def headers(self, of: bytes, at: float) -> list[Header]:
        """What may still be taken, and when the bucket is full again, in the headers that OpenAI's clients know."""
        full_in_s = self.wait_s(self.capacity, at)
        found = (int(self.capacity), max(0, int(self.level)), _duration(full_in_s))
        names = (b"limit", b"remaining", b"reset")
        return [(b"x-ratelimit-%b-%b" % (n, of), str(v).encode()) for n, v in zip(names, found, strict=True)]


@dataclass
class _Account:
    """One key's buckets, and the tokens set aside for what it runs here."""

    limits: KeyLimits
    requests: Bucket | None
    tokens: Bucket | None
    n_running: int = 0


@dataclass
class Charge:
    """What one request has set aside."""

    key: str
    n_tokens: int = 0


@dataclass(frozen=True)
class Used:
    """Requests and tokens of one key."""

    n_requests: int = 0
    n_tokens: int = 0


class LimitBook:
    """The accounts of all keys that have limits and were seen here."""

    def __init__(self) -> None:
        """Begin with full buckets and nothing used."""
        self.accounts: dict[str, _Account] = {}
        self._day = today()
        self._spent: dict[str, int] = {}  # tokens of that day by key, of all gateways

    def admit(self, key: str, limits: KeyLimits) -> Charge:
        """Take one request from the key's bucket.

        Raises:
            Refusal: 429 with the time to wait.
        """
        account = self.accounts.get(key)
        if account is None:
            account = _Account(limits, _full(limits.requests_per_minute), _full(limits.tokens_per_minute))
            self.accounts[key] = account
        self._require_quota(key, account)
        if (bucket := account.requests) is not None:
            if wait_s := bucket.wait_s(1, monotonic()):
                raise self._too_fast(key, f"{limits.requests_per_minute} requests a minute", wait_s)
            bucket.level -= 1
        return Charge(key)

    def reserve(self, charge: Charge, n_tokens: int) -> None:
        """Set tokens aside for a request that was admitted.

        Raises:
            Refusal: 429 with the time to wait; the request is given back.
        """
        account = self.accounts[charge.key]
        if (bucket := account.tokens) is not None:
            if wait_s := bucket.wait_s(n_tokens, monotonic()):
                if account.requests is not None:
                    account.requests.level += 1
                limit = f"{account.limits.tokens_per_minute} tokens a minute"
                raise self._too_fast(charge.key, limit, wait_s)
            bucket.level -= n_tokens
        account.n_running += n_tokens
        charge.n_tokens = n_tokens

    def headers(self, key: str) -> list[Header]:
        """How a key stands with its limits of a minute; none for one that has none."""
        account, at = self.accounts.get(key), monotonic()
        if account is None:
            return []
        buckets = ((b"requests", account.requests), (b"tokens", account.tokens))
        return [header for of, bucket in buckets if bucket is not None for header in bucket.headers(of, at)]

    def settle(self, charge: Charge, n_tokens: int) -> None:
        """Replace what was set aside by what was used."""
        account = self.accounts[charge.key]
        if account.tokens is not None:
            account.tokens.level += charge.n_tokens - n_tokens
        account.n_running -= charge.n_tokens
        charge.n_tokens = 0
        self._begin(today())
        self._spent[charge.key] = self._spent.get(charge.key, 0) + n_tokens

    def told(self, day: str, spent: Mapping[str, int], elsewhere: Mapping[str, Used]) -> None:
        """What is known of the day: tokens of all gateways, and what others used since the last telling."""
        self._begin(day)
        self._spent = dict(spent)
        for key, used in elsewhere.items():
            account = self.accounts.get(key)
            if account is not None:
                _debit(account.requests, used.n_requests)
                _debit(account.tokens, used.n_tokens)

    def _begin(self, day: str) -> None:
        if day != self._day:
            self._day, self._spent = day, {}

    def _too_fast(self, key: str, limit: str, wait_s: float) -> Refusal:
        message, after_s = f"the key's limit of {limit} is reached", max(1, math.ceil(wait_s))
        refusal = Refusal(429, message, None, "rate_limit_exceeded", after_s)
        refusal.extra = self.headers(key)
        return refusal

    def _require_quota(self, key: str, account: _Account) -> None:
        quota = account.limits.tokens_per_day
        if quota is None:
            return
        self._begin(today())
        if self._spent.get(key, 0) + account.n_running < quota:
            return
        now = datetime.now(UTC)
        midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
        raise Refusal(
            429,
            f"the key's quota of {quota} tokens a day is used up; it begins anew at midnight UTC",
            None,
            "insufficient_quota",
            math.ceil((midnight - now).total_seconds()),
        )


def today() -> str:
    """The day of UTC, as usage is kept by."""
    return _spelt(int(time() // DAY_S))


@lru_cache(maxsize=2)
def _spelt(n_days: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=n_days)).isoformat()


def _full(capacity: int | None) -> Bucket | None:
    return None if capacity is None else Bucket(float(capacity), float(capacity), monotonic())


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _debit(bucket: Bucket | None, n: int) -> None:
    if bucket is not None:
        bucket.level -= n
