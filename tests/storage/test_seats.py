"""One of the serves on a shared database leads, wherever they run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llmops.db import writing
from llmops.errors import CouldNotRun
from llmops.ledger import Ledger, append_event
from llmops.serving.lock import serve_lock
from llmops.serving.seat import NotLeading, Seat, seated, somebody_serves
from llmops.settings import Workspace
from tests.serving.gateway import wait_for
from tests.storage.backends import another_workspace

HOLDER = """
import sys, time
from llmops.serving.seat import Seat
seat = Seat(sys.argv[1])
seat.renew()
print(seat.leads, flush=True)
time.sleep(600)
"""


def test_one_of_several_leads_and_all_are_shown(on_postgres: Workspace) -> None:
    seats = [Seat(on_postgres.database_url) for _ in range(3)]
    assert seated(on_postgres.database_url) == []
    for seat in seats:
        seat.renew()
    assert [seat.term for seat in seats] == [1, 0, 0]
    assert (seats[0].n_others, seats[0].count_others()) == (0, 2)  # two came since it was renewed
    shown = seated(on_postgres.database_url)
    assert [one.leads for one in shown] == [True, False, False]
    assert {one.who for one in shown} == {f"process {os.getpid()} on {socket.gethostname()}"[:50]}
    assert somebody_serves(on_postgres)
    seats[0].close()
    for seat in seats[1:]:
        seat.renew()
    assert [seat.term for seat in seats] == [0, 1, 0]
    assert seats[1].n_others == 1
    for seat in seats:
        seat.close()
    wait_for(lambda: not somebody_serves(on_postgres))


def test_only_the_leader_s_session_may_write_what_a_leader_writes(on_postgres: Workspace) -> None:
    ledger = Ledger.of(on_postgres)
    leader, other = Seat(on_postgres.database_url), Seat(on_postgres.database_url)
    leader.renew()
    other.renew()
    _tell(ledger, leader)
    with pytest.raises(NotLeading):
        _tell(ledger, other)
    held = "pid = (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 511702002)"
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {held}")
    wait_for(lambda: not any(one.leads for one in seated(on_postgres.database_url)))
    assert leader.leads, "it has not noticed"
    with pytest.raises(NotLeading):
        _tell(ledger, leader)
    assert len(ledger.events("serve.started")) == 1
    leader.renew()
    assert not leader.leads
    leader.renew()
    assert leader.term == 2, "another lead, behind which others may have decided"
    leader.close()
    other.close()


def _tell(ledger: Ledger, seat: Seat) -> None:
    """Write an event as the leader writes them."""
    with writing(ledger.engine) as connection:
        seat.require(connection)
        append_event(connection, "serve.started", {})


def test_same_workspace_still_names_the_process_here(on_postgres: Workspace) -> None:
    with (
        serve_lock(on_postgres),
        pytest.raises(CouldNotRun, match=rf"process {os.getpid()} serves this workspace already"),
        serve_lock(on_postgres),
    ):
        pass


def test_lead_ends_with_its_holder_however_it_ends(on_postgres: Workspace) -> None:
    command = [sys.executable, "-c", HOLDER, on_postgres.database_url]
    seat = Seat(on_postgres.database_url)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        seat.renew()
        assert (seat.leads, seat.n_others) == (False, 1)
        holder.kill()

    def led() -> bool:  # the server notices the end of a connection in its own time
        seat.renew()
        return seat.leads

    wait_for(led, within_s=60)
    seat.close()


def test_two_files_are_two_databases(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    one, two = (another_workspace(tmp_path / name) for name in ("one", "two"))
    with serve_lock(one), serve_lock(two):
        assert all(Seat(found.database_url).leads for found in (one, two))
        assert seated(one.database_url) == []
