"""What can end a request from outside: its client leaves, its time is up, or the gateway stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from llmops.serving.http import ClientGone, Receive, Refusal

Cause = Refusal | ClientGone


class Leash:
    """Holds the task that works on one request; a context manager within it.

    Whatever pulls first cancels the task, and leaving the block raises the reason instead of the cancellation.
    """

    def __init__(self) -> None:
        """Hold the running task."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = task.get_loop()
        self._cause: Cause | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    def within(self, seconds: float, make_cause: Callable[[], Refusal]) -> None:
        """End the request with that cause in so many seconds; takes the place of an earlier limit."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, lambda: self.pull(make_cause()))

    def watch(self, receive: Receive) -> None:
        """End the request when its client leaves; its body was read before."""
        self._watcher = self._loop.create_task(self._until_gone(receive))

    def pull(self, cause: Cause) -> None:
        """End the request now; only the first cause counts."""
        if self._cause is None:
            self._cause = cause
            self._task.cancel()

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.pull(ClientGone())

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
        if self._watcher is not None:
            self._watcher.cancel()
        cause, self._cause = self._cause, ClientGone()  # nothing pulls any more
        if cause is None:
            return
        # A cancellation that somebody else asked for as well stays one.
        if self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
            raise cause from None
