"""The relational database: connections, locks and migrations. SQLite (one file a workspace), or PostgreSQL.

A write takes the database's write lock with its first statement (`BEGIN IMMEDIATE`; an advisory lock on PostgreSQL), so
two processes never build on the same head of the ledger. Alembic alone makes and moves the schema
(`llmops/migrations/`), inside such a write: processes that start at once on a fresh database wait for one another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import DataError, IntegrityError

from llmops.errors import ConfigError, CouldNotRun, LlmopsError, StoreError

BUSY_TIMEOUT_MS = 30_000
CONNECT_TIMEOUT_S = 10
HEAD_REVISION = "0007"
# Advisory locks are numbers, known to all llmops processes of one PostgreSQL database.
WRITE_LOCK, LEAD_LOCK, SERVE_LOCK = 511_702_001, 511_702_002, 511_702_003
N_KEPT_OPEN = 4

_kept: dict[str, tuple[Engine, object]] = {}  # newest last; with what the file was when it was opened
_keeping = threading.Lock()
_turns: dict[str, threading.Lock] = {}


def open_database(url: str) -> Engine:
    """Connect to the database at `url` and bring its schema to the newest revision.

    One engine a URL is kept open in a process; it serves all threads.

    Raises:
        ConfigError: the driver of PostgreSQL is not installed.
        CouldNotRun: the database was written by a newer llmops, or cannot be opened.
    """
    with _keeping:
        engine, file = _kept.pop(url, (None, None))
        if engine is None or file != _file(url):  # another file may have been put in its place
            engine = _connect(make_url(url))
        if _revision(engine) != HEAD_REVISION:
            _migrate(engine)
        _kept[url] = (engine, _file(url))
        for oldest in list(_kept)[:-N_KEPT_OPEN]:
            del _kept[oldest]  # whoever still uses it keeps it alive
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its first statement.

    Raises:
        StoreError: the database did not take it, or another process held the lock too long; nothing was written.
    """
    options = {"llmops_write": True}
    with _turn(engine), engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    """Let a process's writers to an SQLite file in one after another.

    SQLite lets whoever happens to ask next have a free lock: among many threads some would wait until they give up.
    """
    if engine.dialect.name != "sqlite":
        yield
        return
    turn = _turns.setdefault(str(engine.url), threading.Lock())
    if not turn.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
        raise StoreError(
            f"database {shown(engine.url)}: could not be written (this process is writing for too long); try again"
        )
    try:
        yield
    finally:
        turn.release()


def shown(url: URL) -> str:
    """A database's address for messages: without password and options."""
    if url.get_backend_name() == "sqlite":
        return url.database or "in memory"
    return url.set(query={}).render_as_string(hide_password=True)


# ------------------------------------------------------------ connections


def _connect(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
        event.listen(engine, "connect", _on_sqlite_connect)
    else:
        engine = _connect_postgresql(url)
    event.listen(engine, "begin", _on_begin)
    event.listen(engine, "handle_error", _on_error)
    if engine.dialect.name == "sqlite":
        _use_wal(engine)
    return engine


def _connect_postgresql(url: URL) -> Engine:
    arguments = {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "llmops"}
    try:
        return create_engine(
            url,
            connect_args=arguments,
            # A writer reads the head after it has the lock, and must see what was committed while it waited.
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
            pool_use_lifo=True,
        )
    except ImportError:
        raise ConfigError(
            "LLMOPS_DATABASE_URL: PostgreSQL's driver is not installed; pip install 'llmops[postgres]'"
        ) from None


def _on_sqlite_connect(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would come too late for BEGIN IMMEDIATE
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    write = options.get("llmops_write")
    if options.get("llmops_bare"):  # what SQLite refuses inside a transaction
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
    elif write:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_MS}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")


def _on_error(context: ExceptionContext) -> LlmopsError | None:
    """What the machine or the server did, as one of our errors; what a statement did wrong stays what it is."""
    if context.engine is None or context.is_pre_ping:
        return None
    if isinstance(context.sqlalchemy_exception, IntegrityError | DataError):
        return None
    lines = str(context.original_exception).strip().splitlines()
    where, said = f"database {shown(context.engine.url)}", lines[0] if lines else "no reason given"
    if context.connection is None:
        file = context.engine.dialect.name == "sqlite"
        check = "the path and its permissions" if file else "LLMOPS_DATABASE_URL, and that the server runs"
        return CouldNotRun(f"{where}: cannot be opened ({said}); check {check}")
    if context.connection.get_execution_options().get("llmops_write"):
        return StoreError(
            f"{where}: could not be written ({said}); free space, or wait for whoever holds it, then run it again"
        )
    return CouldNotRun(f"{where}: could not be read ({said}); restore or restart it, then run it again")


def _file(url: str) -> object:
    """What tells an SQLite file from another one at the same path; None for anything else."""
    path = Path(make_url(url).database or "")
    if not url.startswith("sqlite") or not path.is_file():
        return None
    return path.stat().st_dev, path.stat().st_ino


def _forget_engines() -> None:
    """In a forked child: the parent's connections are the parent's, neither used nor closed here."""
    global _keeping
    _keeping = threading.Lock()
    _turns.clear()
    for engine, _ in _kept.values():
        engine.dispose(close=False)
    _kept.clear()


os.register_at_fork(after_in_child=_forget_engines)

# ------------------------------------------------------------ first start


def _use_wal(engine: Engine) -> None:
    """Switch an SQLite file to WAL, once: processes that switch at the same moment meet `database is locked`."""
    from filelock import FileLock, Timeout

    path = engine.url.database
    with engine.connect().execution_options(llmops_bare=True) as connection:
        if connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal":
            return
        try:
            with FileLock(f"{path}.migrate.lock", timeout=BUSY_TIMEOUT_MS / 1000, poll_interval=0.01):
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        except (OSError, Timeout) as error:
            raise CouldNotRun(
                f"database {path}: cannot be opened ({error}); check the path and its permissions"
            ) from error


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not connection.dialect.has_table(connection, "alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with writing(engine) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise CouldNotRun(
            f"database {shown(engine.url)}: {error}; it was written by a newer llmops, install that"
        ) from error
