"""What can end a request from outside: its client leaves, its time is up, or the gateway stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from llmops.serving.http import ClientGone, Receive, Refusal, Scope
from llmops.serving.wire import LOST

Cause = Refusal | ClientGone


class Leash:
    """Holds the task that works on one request; a context manager within it.

    Whatever pulls first cancels the task, and leaving the block raises the reason instead of the cancellation.
    """

    def __init__(self, body_late: Callable[[], Refusal], late: Callable[[float], Refusal]) -> None:
        """Hold the running task; the two say what a request is told whose body, or whose time (seconds), is over."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = task.get_loop()
        self._body_late, self._late = body_late, late
        self._cause: Cause | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._lost: set[Callable[[], None]] | None = None
        self._read = False
        self._whole_s = self._ends_at = 0.0

    def begin(self, body_s: float, whole_s: float) -> None:
        """End the request unless its body came within `body_s` and all is over within `whole_s`."""
        now = self._loop.time()
        self._whole_s, self._ends_at = whole_s, now + whole_s
        self._timer = self._loop.call_at(now + min(body_s, whole_s), self._overdue)

    def watch(self, scope: Scope, receive: Receive) -> None:
        """Note that the body was read, and end the request when its client leaves.

        The server's own connection tells where it is ours (`wire`), which costs nothing; else a task waits for it.
        """
        self._read = True
        self._lost = scope.get(LOST)
        if self._lost is not None:
            self._lost.add(self._gone)
        else:
            self._watcher = self._loop.create_task(self._until_gone(receive))

    def pull(self, cause: Cause) -> None:
        """End the request now; only the first cause counts."""
        if self._cause is None:
            self._cause = cause
            self._task.cancel()

    def _gone(self) -> None:
        self.pull(ClientGone())

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone()

    def _overdue(self) -> None:
        if self._loop.time() >= self._ends_at:
            self.pull(self._late(self._whole_s))
        elif self._read:
            self._timer = self._loop.call_at(self._ends_at, self._overdue)
        else:
            self.pull(self._body_late())

    def __enter__(self) -> Self:
        """Begin to hold."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go.

        Raises:
            Refusal, ClientGone: what ended the block.
        """
        if self._timer is not None:
            self._timer.cancel()
        if self._lost is not None:
            self._lost.discard(self._gone)
        if self._watcher is not None:
            self._watcher.cancel()
        cause, self._cause = self._cause, ClientGone()  # nothing pulls any more
        if cause is None:
            return
        # A cancellation that somebody else asked for as well stays one.
        if self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
            raise cause from None
