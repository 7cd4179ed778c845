"""Writing completions down while others are asked for: durable in the session, then findable in the cache."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from llmops.evals.cache import AnswerCache
from llmops.evals.session import Session
from llmops.evals.suite import Suite
from llmops.records import Completion
from llmops.schema import Progress

GATHERED_S = 0.05
"""How long completions are gathered before they are written together: what a crash may cost."""


@dataclass(frozen=True)
class Kept:
    """A completion to keep: the suite it belongs to, and the key it goes into the cache under ("": not at all)."""

    suite: Suite
    completion: Completion
    key: str = ""


class Keeper:
    """Writes completions in batches of whatever has come since the last write.

    Its task belongs to no group: when asking ends early, what was answered until then is still written.
    """

    def __init__(
        self, session: Session, cache: AnswerCache | None, counts: tuple[int, int], progress: Progress
    ) -> None:
        """Write into a session and a cache; `counts` are the answers there already, and all there will be."""
        self.session = session
        self._cache = cache
        self._n_done, self._n_total = counts
        self._n_errored = 0
        self._progress = progress
        self._queue: asyncio.Queue[Kept | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    def begin(self) -> None:
        """Say what is there before anything is asked; the time left is reckoned from then on."""
        if self._queue.empty():  # else the first write says it, with what came from the cache
            self._progress(self._n_done, self._n_total, "answers")

    def put(self, kept: Kept) -> None:
        """Hand over a completion; raises what writing an earlier one raised."""
        if self._task.done():
            self._task.result()
        self._queue.put_nowait(kept)

    async def close(self) -> None:
        """Wait until all is written."""
        self._queue.put_nowait(None)
        await self._task

    async def _run(self) -> None:
        more = True
        while more:
            batch, more = await self._next()
            if batch:
                await asyncio.to_thread(self._write, batch)
            self._n_done += len(batch)
            self._n_errored += sum(kept.completion.status == "errored" for kept in batch)
            note = f"answers, {self._n_errored} errored" if self._n_errored else "answers"
            self._progress(self._n_done, self._n_total, note)

    def _write(self, batch: list[Kept]) -> None:
        by_suite: dict[str, list[Kept]] = {}
        for kept in batch:
            by_suite.setdefault(kept.suite.config.name, []).append(kept)
        for mine in by_suite.values():
            self.session.append(mine[0].suite, [kept.completion for kept in mine])
        fresh = [(k.key, replace(k.completion, origin=self.session.name)) for k in batch if k.key]
        if self._cache is not None and fresh:
            self._cache.put(fresh)

    async def _next(self) -> tuple[list[Kept], bool]:
        """All that comes within a moment, at least one thing; and whether more may come."""
        waiting = [await self._queue.get()]
        if waiting[0] is not None:
            await asyncio.sleep(GATHERED_S)
        while not self._queue.empty():
            waiting.append(self._queue.get_nowait())
        return [kept for kept in waiting if kept is not None], None not in waiting
