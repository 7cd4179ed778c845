"""Ctrl-C and SIGTERM while a run trains: the first lets the step end and be saved, the second ends the run at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asks the run to end; while steps are taken, a first request waits for the end of one."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.signal: int | None = None
        self._in_steps = False

    @property
    def asked(self) -> bool:
        """Whether the run shall end after this step."""
        return self.signal is not None

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Inside, a first request is kept until somebody looks at `asked`; outside it ends the run where it stands."""
        self._in_steps = True
        try:
            yield
        finally:
            self._in_steps = False

    def ask(self, signum: int, _frame: FrameType | None = None) -> None:
        """Ask the run to end, as a signal's handler.

        Raises:
            KeyboardInterrupt: no step is under way that could be saved first, or this is the second request.
        """
        again, self.signal = self.asked, signum
        if again or not self._in_steps:
            raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[Stop]:
    """A `Stop` that Ctrl-C and SIGTERM ask; the handlers that were there come back after the block.

    Outside the main thread no handler can be set; the stop is then only asked by who calls it.
    """
    stop = Stop()
    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS} if ours else {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
