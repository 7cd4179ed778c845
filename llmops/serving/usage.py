"""What was used, by day, key, model and adapter: counted in memory, added to the database once a second.

The hot path adds to a dictionary; a thread writes. What cannot be written is kept and written later, up to a bound;
beyond it requests are counted as lost, never made to wait. A process that is killed loses what its last second counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from llmops.db import writing
from llmops.errors import LlmopsError
from llmops.serving.limits import LimitBook, Used, today
from llmops.tables import usage

FLUSH_S = 1.0
MAX_ROWS = 10_000
STALE_S = 5.0
"""After a longer silence what others used in it is no debt of this minute."""

log = logging.getLogger("llmops.serving")


class Line(NamedTuple):
    """Where one request is counted: a row of the table. A tuple, since one is made and looked up at every request."""

    day: str
    key: str  # id; empty: no key was asked for
    tenant: str
    model: str  # the name that was asked for
    adapter: str  # digest that answered
    currency: str  # of the cost; empty where no price is set


@dataclass
class Amount:
    """What a row holds. `n_estimated`: requests whose tokens the engine did not tell."""

    n_requests: int = 0
    n_errors: int = 0
    n_estimated: int = 0
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0
    cost: float = 0.0

    def add(self, other: Amount) -> None:
        """Add another amount to this one."""
        self.n_requests += other.n_requests
        self.n_errors += other.n_errors
        self.n_estimated += other.n_estimated
        self.n_prompt_tokens += other.n_prompt_tokens
        self.n_completion_tokens += other.n_completion_tokens
        self.cost += other.cost


class UsageBook:
    """Counts into the table `usage`, and tells the limits what all gateways have counted there."""

    def __init__(self, engine: Engine, limits: LimitBook) -> None:
        """Count into a database's table."""
        self.n_lost = 0
        self._engine = engine
        self._limits = limits
        self._waiting: dict[Line, Amount] = {}
        self._task: asyncio.Task[None] | None = None
        self._flushing = asyncio.Lock()
        self._failing = False
        self._day = ""
        self._mine: dict[str, Used] = {}  # what this process wrote that day, by key
        self._elsewhere: dict[str, Used] = {}  # what others had, as last seen
        self._told_at = 0.0

    async def open(self) -> None:
        """Read what was used today, and begin to write.

        Raises:
            LlmopsError: the database cannot be read.
        """
        self._tell(today(), await asyncio.to_thread(self._totals, today()))
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write all that waits and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.flush()

    def add(self, line: Line, amount: Amount) -> None:
        """Count one request; never waits."""
        found = self._waiting.get(line)
        if found is not None:
            found.add(amount)
        elif len(self._waiting) < MAX_ROWS:
            self._waiting[line] = amount
        else:
            self.n_lost += amount.n_requests

    async def flush(self) -> None:
        """Write what waits and read the day's totals; a database that does not take it is tried again later."""
        async with self._flushing:
            await self._flush()

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        day = today()
        try:
            if waiting:
                await asyncio.to_thread(self._write, waiting)
                self._count_mine(day, waiting)
                waiting = {}
            self._tell(day, await asyncio.to_thread(self._totals, day))
            self._failing = False
        except (LlmopsError, SQLAlchemyError) as error:
            if not self._failing:
                log.error("usage cannot be kept: %s", error)
            self._failing = True
            for line, amount in waiting.items():
                self.add(line, amount)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            await asyncio.shield(self.flush())

    def _write(self, waiting: Mapping[Line, Amount]) -> None:
        """In a thread: add the amounts to their rows, in one transaction."""
        rows = [{**line._asdict(), **amount.__dict__} for line, amount in waiting.items()]
        with writing(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                from sqlalchemy.dialects.postgresql import insert
            else:
                from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
            new = insert(usage)
            sums = {name: usage.c[name] + new.excluded[name] for name in Amount().__dict__}
            connection.execute(new.on_conflict_do_update(index_elements=usage.primary_key, set_=sums), rows)

    def _totals(self, day: str) -> dict[str, Used]:
        """In a thread: what all gateways have counted on a day, by key."""
        n_tokens = func.sum(usage.c.n_prompt_tokens + usage.c.n_completion_tokens)
        query = select(usage.c.key, func.sum(usage.c.n_requests), n_tokens).where(usage.c.day == day)
        with self._engine.connect() as connection:
            rows = connection.execute(query.group_by(usage.c.key)).all()
        return {key: Used(int(n_requests), int(tokens)) for key, n_requests, tokens in rows}

    def _count_mine(self, day: str, written: Mapping[Line, Amount]) -> None:
        self._begin(day)
        for key, used in _by_key(day, written).items():
            self._mine[key] = _sum(self._mine.get(key, Used()), used, 1)

    def _tell(self, day: str, totals: Mapping[str, Used]) -> None:
        first = self._begin(day) or time.monotonic() - self._told_at > STALE_S
        self._told_at = time.monotonic()
        waiting = _by_key(day, self._waiting)  # counted after what was written
        spent = {
            key: _sum(totals.get(key, Used()), waiting.get(key, Used()), 1).n_tokens
            for key in {**totals, **waiting}
        }
        elsewhere = {key: _sum(used, self._mine.get(key, Used()), -1) for key, used in totals.items()}
        news = {key: _sum(used, self._elsewhere.get(key, Used()), -1) for key, used in elsewhere.items()}
        self._elsewhere = elsewhere
        self._limits.told(day, spent, {} if first else news)

    def _begin(self, day: str) -> bool:
        """Forget another day; True when this one begins, and nothing is known of what others used before."""
        if day == self._day:
            return False
        self._day, self._mine, self._elsewhere = day, {}, {}
        return True


def _by_key(day: str, amounts: Mapping[Line, Amount]) -> dict[str, Used]:
    found: dict[str, Used] = {}
    for line, amount in amounts.items():
        if line.day == day:
            n_tokens = amount.n_prompt_tokens + amount.n_completion_tokens
            found[line.key] = _sum(found.get(line.key, Used()), Used(amount.n_requests, n_tokens), 1)
    return found


def _sum(a: Used, b: Used, sign: int) -> Used:
    return Used(a.n_requests + sign * b.n_requests, a.n_tokens + sign * b.n_tokens)
