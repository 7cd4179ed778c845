"""The process between the gateway and an engine: `python -m llmops.engines.guard COMMAND...` leaves nothing
behind.

The engine and all it starts run in one process group of their own. The guard stops the group when its
standard input ends, which happens when the gateway asks for it and also when the gateway is killed; and it
clears what the engine leaves when it ends by itself. A line with a number on standard input sets how many
seconds a stopped engine may take. Exits as the engine did (128 + n for signal n). Imports nothing of llmops.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

DEFAULT_GRACE_S = 5.0
LOOK_EVERY_S = 0.1
_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Run `command` until it ends or standard input does; return its exit status."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _: stopping.append(got))
    # Safe: the guard has one thread.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with_guard)  # noqa: PLW1509
    said = b""
    open_input = True
    while child.poll() is None and open_input and not stopping:
        readable, _, _ = select.select([0], [], [], LOOK_EVERY_S)
        if readable:
            chunk = os.read(0, 64)
            open_input = bool(chunk)
            said += chunk
    if child.poll() is None:
        _stop(child, _grace_s(said))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _die_with_guard() -> None:
    """Have the kernel kill the engine when the guard itself is killed (on Linux; elsewhere it lives on)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _grace_s(said: bytes) -> float:
    try:
        return max(0.0, float(said.decode().strip() or DEFAULT_GRACE_S))
    except ValueError:
        return DEFAULT_GRACE_S


def _stop(child: subprocess.Popen[bytes], grace_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S / 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
