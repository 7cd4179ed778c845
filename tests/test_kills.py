"""Many killed writers: whatever a ledger or store acknowledged is there, whole, after kill -9. Three of them, on each
backend: tests/storage/test_shared_ledger.py."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

from llmops.ledger import Ledger
from llmops.settings import Workspace
from llmops.store import Store

WRITER = """
import sys
from pathlib import Path
from llmops.ledger import Ledger
from llmops.settings import find_workspace
from llmops.store import Store
workspace = find_workspace(Path(sys.argv[1]))
ledger, store = Ledger.of(workspace), Store(workspace.store_root)
print("ready", flush=True)
for n in range(100_000):
    digest = store.put_files("blob", {"a": b"x" * 5000, "b": f"{sys.argv[2]} {n}".encode()})
    event = ledger.append("run.started", {"run": digest})
    print(event.seq, digest, flush=True)
"""


def _kill_a_writer(workspace: Workspace, round_: int, after_s: float) -> dict[int, str]:
    """Start a writer, kill it -9 after a moment; returns what it said was written, by event number."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(workspace.root), str(round_)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(after_s)
    child.kill()
    lines = [line.split() for line in child.stdout.read().splitlines() if len(line.split()) == 2]
    child.wait()
    return {int(seq): digest for seq, digest in lines if len(digest) == 64}


def _check_kills(workspace: Workspace, n_kills: int) -> None:
    moments = random.Random(0)
    said: dict[int, str] = {}
    for round_ in range(n_kills):
        said |= _kill_a_writer(workspace, round_, moments.uniform(0.005, 0.25))
    assert len(said) > n_kills
    ledger, store = Ledger.of(workspace), Store(workspace.store_root)
    assert ledger.verify() >= len(said)
    events = {event.seq: event.body["run"] for event in ledger.events()}
    assert {seq: events.get(seq) for seq in said} == said
    for digest in store.digests("blob"):
        store.verify("blob", digest)
    assert set(said.values()) <= set(store.digests("blob"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hundred_killed_writers_lose_nothing_they_acknowledged(workspace: Workspace) -> None:
    _check_kills(workspace, 100)
