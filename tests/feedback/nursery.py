"""Rating pages as processes of their own that start at once: Gradio is imported in one process, which forks them.

A page so made is a process like any other: it opens its own database and sockets, and ends by a signal, kill -9 too.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENDS_WITHIN_S = 60.0
NURSE = """
import json, os, signal, sys
from pathlib import Path
import gradio, uvicorn
import llmops.feedback.admin, llmops.ratings.ranks
from llmops.feedback.address import Address
from llmops.feedback.page import serve_page
from llmops.settings import find_workspace

def serve(asked):
    os.environ.clear()
    os.environ.update(asked["environment"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    said = os.open(asked["says"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    workspace = find_workspace(Path(asked["root"]))
    serve_page(workspace, asked["campaign"] or None, Address(asked["port"]), lambda url: print(url, flush=True))

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever ends is gone at once
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        code = 1
        try:
            serve(json.loads(line))
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    print(child, flush=True)
"""


@dataclass(frozen=True)
class Forked:
    """A page's process."""

    pid: int

    def poll(self) -> int | None:
        """0 when it has ended, else None."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def wait(self, timeout: float = ENDS_WITHIN_S) -> int:
        """Until it has ended; how is not known here."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, "did not end"
            time.sleep(0.005)
        return 0

    def kill(self) -> None:
        """Like kill -9."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def fork_page(root: Path, campaign: str, port: int, says: Path) -> Forked:
    """A page of the workspace in `root`, whose output goes to the file `says`."""
    asked = {
        "root": str(root), "campaign": campaign, "port": port, "says": str(says), "environment": dict(os.environ),
    }  # fmt: skip
    nurse = _nurse()
    assert nurse.stdin is not None
    assert nurse.stdout is not None
    nurse.stdin.write(json.dumps(asked) + "\n")
    nurse.stdin.flush()
    return Forked(int(nurse.stdout.readline()))


@cache
def _nurse() -> subprocess.Popen[str]:
    """The process that has imported everything; one for all tests of this process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False"}
    nurse = subprocess.Popen(
        [sys.executable, "-P", "-c", NURSE],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    atexit.register(nurse.kill)
    assert nurse.stdout is not None
    assert nurse.stdout.readline() == "ready\n"
    return nurse
