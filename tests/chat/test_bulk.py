"""Many conversations at once, over processes: the same results as one at a time, in order, or a clear end."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmops.chat import Encoder, bulk, encode_many
from llmops.errors import CouldNotRun, RowRefused
from llmops.records import Message
from tests.chat.families import FAMILIES, Family, build
from tests.chat.test_families import THOUGHT, TOOL_LOOP, TOOLS, TWO_TURNS

U, A = "user", "assistant"
ROWS = (
    (TWO_TURNS, None),
    (TOOL_LOOP, TOOLS),
    (THOUGHT, None),
    ((Message(U, "q"), Message(A, " padded ")), None),
    ((Message(U, "q"),), None),
    ((Message(U, "q"), Message(A, "世界 😀")), None),
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 4)


def _said(encoder: Encoder, row: tuple[Sequence[Message], str | None]) -> object:
    try:
        return encoder.encode_all(*row)
    except RowRefused as error:
        return error.reason


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_many_rows_over_processes_give_what_each_row_gives_alone(family: Family) -> None:
    encoder = Encoder(*build(family))
    rows = ROWS * 5
    alone = [_said(encoder, row) for row in rows]
    for n_processes in (1, 3):
        found = encode_many(encoder, rows, n_processes)
        assert [f.reason if isinstance(f, RowRefused) else f for f in found] == alone
    assert sum(isinstance(one, str) for one in alone) >= 5, "refusals stand in their places"


def test_processes_take_turns_and_results_keep_their_order() -> None:
    found = list(bulk.in_chunks(lambda part: [(i, os.getpid()) for i in part], range(50), 3))
    assert [i for i, _ in found] == list(range(50))
    assert len({pid for _, pid in found}) == 3
    assert os.getpid() not in {pid for _, pid in found}


def test_worker_that_dies_ends_the_work_with_an_error() -> None:
    def die(part: Sequence[int]) -> list[int]:
        if 13 in part:
            os.kill(os.getpid(), signal.SIGKILL)
        return list(part)

    with pytest.raises(CouldNotRun, match="worker process ended"):
        list(bulk.in_chunks(die, range(40), 2))


def test_error_of_a_worker_is_raised_as_it_is() -> None:
    def fail(part: Sequence[int]) -> list[int]:
        raise ZeroDivisionError("one over nothing")

    with pytest.raises(ZeroDivisionError, match="one over nothing"):
        list(bulk.in_chunks(fail, range(40), 2))


def test_workers_end_with_results_that_nobody_takes() -> None:
    found = bulk.in_chunks(lambda part: [(os.getpid(), "x" * 100_000) for _ in part], range(400), 2)
    pids = {next(found)[0] for _ in range(8)}
    found.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_of_a_killed_process_end_by_themselves() -> None:
    code = """
import os, sys
from llmops.chat import bulk
found = bulk.in_chunks(lambda part: [(os.getpid(), "x" * 100_000) for _ in part], range(100_000), 2)
print(*sorted({next(found)[0] for _ in range(2 * bulk.CHUNK)}), flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_refusals_pickle_with_their_kind() -> None:
    error = pickle.loads(pickle.dumps(RowRefused("no end token", "messages[1]: none")))
    assert (type(error), error.kind, str(error)) == (RowRefused, "no end token", "messages[1]: none")
