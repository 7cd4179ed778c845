"""What children do at the same moment; a module of its own, so that starting one imports little."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from pathlib import Path

from sqlalchemy.engine import make_url

from llmops import db
from llmops.ledger import Ledger


def append_many(url: str) -> None:
    """Append 25 events."""
    ledger = Ledger(db.open_database(url))
    for n in range(25):
        ledger.append("run.started", {"run": str(n)})


def connect_in_step(folder: Path, barrier: Barrier, n: int) -> None:
    """Open `n` fresh files, each when all children are there."""
    try:
        for i in range(n):
            barrier.wait(100)
            db._connect(make_url(f"sqlite:///{folder}/{i}.db")).dispose()
    except BaseException:
        barrier.abort()
        raise
