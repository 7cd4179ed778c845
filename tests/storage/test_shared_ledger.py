"""The ledger and the ratings, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from llmops import db
from llmops.db import HEAD_REVISION, open_database, writing
from llmops.errors import CouldNotRun, InvalidEvidence, StoreError
from llmops.ledger import Anchor, Ledger
from llmops.ratings.check import verify_ratings
from llmops.settings import Workspace
from llmops.store import Store
from llmops.tables import events, metadata
from tests.ratings.campaign import make_book, vote
from tests.storage.at_once import append_many, connect_in_step
from tests.storage.backends import Backend

STARTER = """
import sys
from pathlib import Path
from llmops.ledger import Ledger
from llmops.settings import find_workspace
workspace = find_workspace(Path(sys.argv[1]))
import alembic.command, llmops.db, sqlalchemy  # so that what follows is the first start itself
print("ready", flush=True)
sys.stdin.readline()
Ledger.of(workspace).append("run.started", {"run": sys.argv[2]})
"""

WRITER = """
import sys
from pathlib import Path
from llmops.ledger import Ledger
from llmops.settings import find_workspace
from llmops.store import Store
workspace = find_workspace(Path(sys.argv[1]))
ledger, store = Ledger.of(workspace), Store.of(workspace)
print("ready", flush=True)
for n in range(100_000):
    digest = store.put_files("blob", {"a": b"x" * 5000, "b": f"{sys.argv[2]} {n}".encode()})
    event = ledger.append("run.started", {"run": digest})
    print(event.seq, digest, flush=True)
"""


@pytest.fixture
def ledger(workspace: Workspace) -> Ledger:
    ledger = Ledger.of(workspace)
    for n in range(1, 6):
        ledger.append("run.started", {"run": f"r{n}"})
    return ledger


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ('UPDATE events SET body = \'{"run":"rX"}\' WHERE seq = 3', "event 3 .* was edited"),
        ("UPDATE events SET at = '2020' WHERE seq = 2", "event 2 .* was edited"),
        ("DELETE FROM events WHERE seq = 4", "event 4 is missing"),
    ],
)
def test_edited_and_deleted_events_are_named(
    ledger: Ledger, backend: Backend, statement: str, named: str
) -> None:
    assert ledger.verify() == 5
    backend.execute(statement)
    with pytest.raises(InvalidEvidence, match=named):
        ledger.verify()


def test_deleted_tail_is_noticed_by_an_anchor(ledger: Ledger, backend: Backend) -> None:
    anchor = Anchor(*ledger.head(), "the release of docs")
    backend.execute("DELETE FROM events WHERE seq >= 4")
    assert ledger.verify() == 3
    with pytest.raises(
        InvalidEvidence, match="ends at event 3, but the release of docs was bound to event 5"
    ):
        ledger.verify([anchor])


def test_migrations_make_exactly_the_tables_the_code_uses(workspace: Workspace) -> None:
    with open_database(workspace.database_url).connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == HEAD_REVISION


def test_database_of_a_newer_version_is_refused(
    ledger: Ledger, workspace: Workspace, backend: Backend
) -> None:
    backend.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CouldNotRun, match="written by a newer llmops"):
        Ledger.of(workspace)


def test_processes_that_start_at_once_on_a_fresh_database_all_write(workspace: Workspace) -> None:
    n_processes = 4
    started = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, str(workspace.root), str(n)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(n_processes)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [0] * n_processes, said
    ledger = Ledger.of(workspace)
    assert ledger.verify() == n_processes
    assert {event.body["run"] for event in ledger.events()} == {str(n) for n in range(n_processes)}


def test_processes_that_append_at_once_never_fork_the_chain(workspace: Workspace) -> None:
    with get_context("spawn").Pool(4) as pool:
        pool.map(append_many, [workspace.database_url] * 4, chunksize=1)
    assert Ledger.of(workspace).verify() == 100


def _delete_and_fail(ledger: Ledger) -> None:
    with writing(ledger.engine) as connection:
        connection.execute(events.delete())
        raise ZeroDivisionError


def test_failed_write_leaves_nothing(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError):
        _delete_and_fail(ledger)
    assert ledger.verify() == 5


def test_writer_that_waits_too_long_for_another_is_told(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "BUSY_TIMEOUT_MS", 200)
    ledger = Ledger.of(workspace)
    with (
        writing(ledger.engine),
        pytest.raises(
            StoreError,
            match=r"database .*: could not be written \(.*(lock|writing).*\); (free space, or wait|try again)",
        ),
    ):
        ledger.append("run.started", {"run": "other"})
    ledger.append("run.started", {"run": "after"})
    assert [event.body["run"] for event in ledger.events()] == ["after"]


def test_killed_writers_lose_nothing_they_acknowledged(workspace: Workspace) -> None:
    moments, said = random.Random(0), {}
    for round_ in range(3):
        command = [sys.executable, "-c", WRITER, str(workspace.root), str(round_)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        first = [child.stdout.readline() for _ in range(4)]
        time.sleep(moments.uniform(0, 0.1))
        child.kill()
        lines = [line.split() for line in (*first, *child.stdout.read().splitlines())]
        child.wait()
        said |= {int(line[0]): line[1] for line in lines if len(line) == 2 and len(line[1]) == 64}
    assert len(said) >= 9
    ledger, store = Ledger.of(workspace), Store.of(workspace)
    assert ledger.verify() >= len(said)
    events = {event.seq: event.body["run"] for event in ledger.events()}
    assert {seq: events.get(seq) for seq in said} == said
    stored = store.digests("blob")
    assert set(said.values()) <= set(stored)
    for digest in stored:
        store.verify("blob", digest)


def test_ratings_are_kept_superseded_and_verified(workspace: Workspace, backend: Backend) -> None:
    book = make_book(workspace, n_items=2)
    first = book.next("ann")
    assert first is not None
    book.rate(first.id, "left")
    changed = book.rate(first.id, "right")
    assert changed.number == 2
    vote(book, "ann", "tie")
    assert book.next("ann") is None
    standing = book.standing("ann")
    assert (standing.n_items, standing.n_full, standing.n_mine) == (2, 2, 2)
    assert verify_ratings(Store.of(workspace), Ledger.of(workspace)) == 3
    backend.execute("UPDATE ratings SET choice = 'left' WHERE number = 3")
    with pytest.raises(InvalidEvidence, match="#3 was changed"):
        verify_ratings(Store.of(workspace), Ledger.of(workspace))


def test_one_rater_cannot_have_two_live_ratings_of_an_item(workspace: Workspace, backend: Backend) -> None:
    book = make_book(workspace, n_items=1)
    vote(book, "ann", "tie")
    columns = 'campaign, item, rater, showing, "left", choice, at, supersedes, live'
    with pytest.raises(Exception, match=r"(?i)unique"):
        backend.execute(
            f"INSERT INTO ratings (number, digest, {columns}) SELECT 2, 'x', {columns} FROM ratings"
        )


@pytest.mark.parametrize(
    "n_files", [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_files_opened_by_processes_in_step_are_never_locked(tmp_path: Path, n_files: int) -> None:
    """Switching to WAL at the same moment is refused by SQLite at once, whatever the busy timeout."""
    spawn = get_context("spawn")
    barrier = spawn.Barrier(6)
    started = [spawn.Process(target=connect_in_step, args=(tmp_path, barrier, n_files)) for _ in range(6)]
    for process in started:
        process.start()
    for process in started:
        process.join(800)
    assert [process.exitcode for process in started] == [0] * 6
