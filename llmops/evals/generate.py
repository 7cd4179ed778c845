"""Generation: every system answers every case in one session, case by case, the systems' order alternating.

Interleaving lets whatever changes during a session (load, temperature, a neighbour) fall on all systems
alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from llmops.engines.endpoint import Endpoint, System
from llmops.errors import CouldNotRun, LlmopsError
from llmops.evals.session import Session
from llmops.evals.suite import Suite
from llmops.records import Case, Completion
from llmops.schema import Progress

# Questions in a row given up after every retry: the endpoint is gone, and each further one would wait as
# long.
GIVE_UP_AFTER = 3

Question = tuple[Case, System, int]
"""A case put to a system, and which sample of it."""


@dataclass(frozen=True)
class Job:
    """What is generated: the suite's cases by each system, on the engine with that signature digest."""

    suite: Suite
    systems: tuple[System, ...]
    engine: str
    n_concurrent: int


def questions(job: Job) -> Iterator[Question]:
    """All questions in the order they are asked: case i begins with system i modulo the number of systems."""
    n = len(job.systems)
    for i, case in enumerate(job.suite.cases):
        for sample in range(job.suite.config.samples):
            for k in range(n):
                yield case, job.systems[(i + k) % n], sample


async def generate(endpoint: Endpoint, job: Job, session: Session, progress: Progress) -> None:
    """Ask what the session has no answer to, and keep every completion before more are asked for.

    Raises:
        CouldNotRun: the endpoint is gone for good; what was answered stays, and the session can be resumed.
        StoreError: the disk did not take a completion.
    """
    kept = session.completions()
    answered = {key for key, completion in kept.items() if completion.status == "answered"}
    todo = [q for q in questions(job) if (q[0].digest, q[1].model, q[2]) not in answered]
    total = len(job.suite.cases) * len(job.systems) * job.suite.config.samples
    progress(total - len(todo), total, "answers")
    keeper = _Keeper(session, total - len(todo), total, progress)
    try:
        await _ask_all(endpoint, job, todo, keeper)
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    finally:
        await keeper.close()


async def _ask_all(endpoint: Endpoint, job: Job, todo: list[Question], keeper: _Keeper) -> None:
    waiting = iter(todo)  # shared: each worker takes the next question

    async def work() -> None:
        for case, system, sample in waiting:
            completion = await endpoint.ask(system, case, job.suite.config.decoding, job.engine, sample)
            keeper.put(completion)
            if endpoint.n_given_up >= GIVE_UP_AFTER:
                raise CouldNotRun(
                    f"endpoint {endpoint.url}: no longer answers ({completion.error}); "
                    f"mend it, then run `llmops eval` with --resume {keeper.session.name}"
                )

    async with asyncio.TaskGroup() as group:
        for _ in range(min(job.n_concurrent, len(todo))):
            group.create_task(work())


class _Keeper:
    """Writes completions in batches of whatever has come since the last write.

    Its task belongs to no group: when asking ends early, what was answered until then is still written.
    """

    def __init__(self, session: Session, n_done: int, n_total: int, progress: Progress) -> None:
        self.session = session
        self._n_done = n_done
        self._n_total = n_total
        self._n_errored = 0
        self._progress = progress
        self._queue: asyncio.Queue[Completion | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    def put(self, completion: Completion) -> None:
        """Hand over a completion; raises what writing an earlier one raised."""
        if self._task.done():
            self._task.result()
        self._queue.put_nowait(completion)

    async def close(self) -> None:
        """Wait until all is written."""
        self._queue.put_nowait(None)
        await self._task

    async def _run(self) -> None:
        more = True
        while more:
            batch, more = await self._next()
            if batch:
                await asyncio.to_thread(self.session.append, batch)
            self._n_done += len(batch)
            self._n_errored += sum(c.status == "errored" for c in batch)
            note = f"answers, {self._n_errored} errored" if self._n_errored else "answers"
            self._progress(self._n_done, self._n_total, note)

    async def _next(self) -> tuple[list[Completion], bool]:
        """All that waits, at least one thing; and whether more may come."""
        waiting = [await self._queue.get()]
        while not self._queue.empty():
            waiting.append(self._queue.get_nowait())
        return [c for c in waiting if c is not None], None not in waiting


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Our own error among those of a group, else its first."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [errors]
    while stack:
        error = stack.pop(0)
        if isinstance(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, LlmopsError)), leaves[0])
