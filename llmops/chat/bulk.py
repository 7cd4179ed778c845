"""Encoding many conversations on all cores: the same code and the same results as one at a time.

Rows are not sent anywhere: child processes are forked with them and send back what they made of their share.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TypeVar

from llmops.chat.encoder import Conversation, Encoder
from llmops.chat.masks import Encoded
from llmops.errors import CouldNotRun, RowRefused

CHUNK = 256  # rows a child sends at a time
WORTH_FORKING = 4_000  # rows; fewer are done before children have started

T = TypeVar("T")
R = TypeVar("R")


def encode_many(
    encoder: Encoder, conversations: Sequence[Conversation], n_processes: int | None = None
) -> Iterator[tuple[Encoded, ...] | RowRefused]:
    """What `encoder.encode_all` says of each conversation, in order; a refused one gives its error.

    Args:
        encoder: made for the base and the contract.
        conversations: turns and tools of each.
        n_processes: how many work; None: one a core if there are rows enough.

    Raises:
        CouldNotRun: a child process ended before its share was done.
    """
    return in_chunks(lambda part: list(encoder.encode_many(part)), conversations, n_processes)


def in_chunks(
    work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], n_processes: int | None = None
) -> Iterator[R]:
    """`work` on consecutive parts of `items`, its results in order; on all cores where that is worth it.

    `work` gives one result an item, which must pickle. Where processes cannot be forked, it runs in this one.
    """
    n = usable_cores() if n_processes is None and len(items) >= WORTH_FORKING else n_processes or 1
    n = min(n, -(-len(items) // CHUNK))
    if n <= 1 or not hasattr(os, "fork"):
        for start in range(0, len(items), CHUNK):
            yield from work(items[start : start + CHUNK])
        return
    with _children(work, items, n) as ends:
        for chunk in range(-(-len(items) // CHUNK)):
            yield from _received(ends[chunk % n])


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _received(end: Connection) -> list[R]:
    try:
        done, found = pickle.loads(end.recv_bytes())
    except EOFError:
        raise CouldNotRun("encoding: a worker process ended before its rows were done; try again") from None
    if not done:
        raise found
    results: list[R] = found
    return results


@contextmanager
def _children(
    work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], n: int
) -> Iterator[list[Connection]]:
    """`n` children at work, child i on chunks i, i + n ...; gives the ends that their results come from."""
    ends: list[Connection] = []
    pids: list[int] = []
    variable = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(variable)
    os.environ[variable] = "false"  # each child has a core to itself; also silences a warning about forks
    try:
        for i in range(n):
            mine, theirs = Pipe(duplex=False)
            pid = os.fork()
            if pid == 0:
                for end in (*ends, mine):
                    end.close()  # else a parent that died would go unnoticed
                _work(work, items, range(i * CHUNK, len(items), n * CHUNK), theirs)
            theirs.close()
            ends.append(mine)
            pids.append(pid)
        yield ends
    finally:
        os.environ.pop(variable) if before is None else os.environ.__setitem__(variable, before)
        for end in ends:
            end.close()
        for pid in pids:
            _end(pid)


def _work(
    work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], starts: range, end: Connection
) -> None:
    """A child's whole life; never returns. A parent that is gone ends it at the next chunk."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends its children
    code = 0
    try:
        for start in starts:
            end.send_bytes(pickle.dumps((True, list(work(items[start : start + CHUNK])))))
    except OSError:
        code = 1
    except BaseException as error:
        end.send_bytes(pickle.dumps((False, error)))
    finally:
        os._exit(code)


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
