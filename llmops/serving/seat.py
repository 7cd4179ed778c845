"""Which of the gateways on one database leads: the one whose session holds the database's advisory lock.

On SQLite there is one serve a workspace (`lock`), and it leads. On PostgreSQL every serve has a session of its own
there for as long as it runs; the session shows that the serve exists, and one of the sessions holds the lock. Both end
with the process, or with its machine (noticed within a minute). Everything here blocks; the gateway runs it in threads.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection, text

from llmops.db import LEAD_LOCK, SERVE_LOCK, open_database
from llmops.errors import CouldNotRun, LlmopsError
from llmops.serving.lock import running
from llmops.settings import Workspace

CALLED = "llmops serve: "
_SETTINGS = {
    "idle_session_timeout": "0",
    "tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3",
}  # fmt: skip
_HELD = (
    "FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.granted AND l.locktype = 'advisory'"
    " AND a.datname = current_database()"
)

log = logging.getLogger("llmops.serving")


class NotLeading(CouldNotRun):
    """Another gateway leads, or may: what only the leader writes was not written."""


@dataclass(frozen=True)
class Seated:
    """A gateway that runs on a database: its process and machine, and whether it leads."""

    who: str
    leads: bool


@dataclass(frozen=True)
class _Session:
    """The database's session that holds this gateway's locks."""

    connection: Connection
    pid: int
    began: object


class Seat:
    """One gateway's place, as `renew` found it last.

    `term` numbers the times that this gateway got the lead, and is 0 while it has not; `n_others` counts the other
    gateways on the database.
    """

    def __init__(self, url: str) -> None:
        """Prepare; `renew` takes a place."""
        self.shared = url.startswith("postgresql")
        self.term = 0 if self.shared else 1
        self.n_others = 0
        self._n_terms = 0
        self._url = url
        self._session: _Session | None = None

    @property
    def leads(self) -> bool:
        """Whether this gateway has the lead."""
        return self.term > 0

    def count_others(self) -> int:
        """How many other gateways are on the database now, those included that came since `renew`.

        Raises:
            LlmopsError: the database cannot be read.
        """
        return max(0, len(seated(self._url)) - 1) if self.shared else self.n_others

    def renew(self) -> None:
        """Hold a place, and the lead if it is free; a lead whose session has ended is given up."""
        if not self.shared:
            return
        try:
            session = self._session = self._session or self._connect()
            connection = session.connection
            got = not self.leads and connection.scalar(
                text("SELECT pg_try_advisory_lock(:key)"), {"key": LEAD_LOCK}
            )
            n_seated = connection.scalar(
                text(f"SELECT count(DISTINCT l.pid) {_HELD} AND l.objid = :key"), {"key": SERVE_LOCK}
            )
            self.n_others = int(n_seated or 1) - 1
            if got:
                self._n_terms += 1
                self.term = self._n_terms
        except LlmopsError as error:
            if self._session is not None:
                log.error("this gateway lost its place among those of its database: %s", error)
            self._drop()

    def close(self) -> None:
        """Give the place up, and the lead with it: at once free for another."""
        if self._session is not None:
            with suppress(LlmopsError):
                self._session.connection.execute(text("SELECT pg_advisory_unlock_all()"))
        self._drop()

    def _drop(self) -> None:
        session, self._session = self._session, None
        self.term = 0 if self.shared else 1
        if session is not None:
            session.connection.invalidate()  # ends the session, and with it its locks and settings
            session.connection.close()

    def require(self, connection: Connection) -> None:
        """Refuse, inside a transaction that is to write what only the leader writes, unless this gateway leads.

        Raises:
            NotLeading: the session that held the lead is gone, even if nothing here has noticed yet.
        """
        if not self.shared:
            return
        session = self._session
        if session is not None and self.leads:
            held = text(f"SELECT a.backend_start {_HELD} AND l.objid = :key AND l.pid = :pid")
            began = connection.scalar(held, {"key": LEAD_LOCK, "pid": session.pid})
            if began is not None and began == session.began:
                return
        raise NotLeading("serving: this gateway does not lead its database's gateways any more; it follows")

    def _connect(self) -> _Session:
        connection = open_database(self._url).connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            name = f"{CALLED}process {os.getpid()} on {socket.gethostname()}"
            for setting, value in {"application_name": name, **_SETTINGS}.items():
                connection.execute(
                    text("SELECT set_config(:name, :value, false)"), {"name": setting, "value": value}
                )
            connection.execute(text("SELECT pg_advisory_lock_shared(:key)"), {"key": SERVE_LOCK})
            own = text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
            pid, began = connection.execute(own).one()
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        return _Session(connection, pid, began)


def seated(url: str) -> list[Seated]:
    """The gateways that run on a PostgreSQL database now, the leader first; empty for SQLite.

    Raises:
        LlmopsError: the database cannot be read.
    """
    if not url.startswith("postgresql"):
        return []
    query = text(
        f"SELECT a.application_name AS who, bool_or(l.objid = :lead) AS leads {_HELD} AND l.objid IN (:lead, :here)"
        " GROUP BY l.pid, a.application_name ORDER BY 2 DESC, 1"
    )
    with open_database(url).connect() as connection:
        rows = connection.execute(query, {"lead": LEAD_LOCK, "here": SERVE_LOCK}).all()
    return [Seated(str(row.who).removeprefix(CALLED), bool(row.leads)) for row in rows]


def somebody_serves(workspace: Workspace) -> bool:
    """Whether a gateway answers requests in this workspace's ledger: its own, or another one on its database.

    Raises:
        LlmopsError: the database cannot be read.
    """
    return running(workspace) is not None or any(one.leads for one in seated(workspace.database_url))
