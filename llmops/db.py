"""The relational database: tables, connections and migrations. SQLite in WAL mode, one file a workspace.

Appends take the write lock at once (`BEGIN IMMEDIATE`), so two processes never build on the same head. The schema is
made and moved by Alembic alone (`llmops/migrations/`), under a file lock: two processes on a fresh database are safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from llmops.errors import CouldNotRun, StoreError

BUSY_TIMEOUT_MS = 10_000
HEAD_REVISION = "0002"

metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),
    Column("kind", String(64), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("prev", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
)

showings = Table(
    "showings",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("campaign", String(64), nullable=False),
    Column("item", String(64), nullable=False),
    Column("rater", String(128), nullable=False),
    Column("left", Integer, nullable=False),
    Column("at", String(32), nullable=False),
    Index("ix_showings_campaign_item", "campaign", "item"),
)

ratings = Table(
    "ratings",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("campaign", String(64), nullable=False),
    Column("item", String(64), nullable=False),
    Column("rater", String(128), nullable=False),
    Column("showing", String(32), nullable=False),
    Column("left", Integer, nullable=False),
    Column("choice", String(16), nullable=False),
    Column("at", String(32), nullable=False),
    Column("supersedes", String(64), nullable=True),
    Column("live", Boolean, nullable=False),
    Index("ix_ratings_campaign_item", "campaign", "item"),
)
# One rater has one live rating of an item; what it supersedes stays, no longer live.
Index(
    "uq_ratings_live", ratings.c.campaign, ratings.c.item, ratings.c.rater, unique=True,
    sqlite_where=ratings.c.live, postgresql_where=ratings.c.live,
)  # fmt: skip


def open_database(url: str) -> Engine:
    """Connect to the database at `url` and bring its schema to the newest revision.

    Raises:
        CouldNotRun: the database was written by a newer llmops, or cannot be opened.
    """
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    _set_up_sqlite(engine)
    try:
        if _revision(engine) != HEAD_REVISION:
            _migrate(engine)
    except OperationalError as error:
        raise CouldNotRun(
            f"database {url}: cannot be opened ({error.orig}); check the path and its permissions"
        ) from error
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its first statement.

    Raises:
        StoreError: the disk did not take it, or another process held the lock too long; nothing was written.
    """
    try:
        with engine.connect().execution_options(llmops_write=True) as connection, connection.begin():
            yield connection
    except OperationalError as error:
        raise StoreError(
            f"database {engine.url.database}: could not be written ({error.orig}); free space, then run it again"
        ) from error


def _set_up_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN would come too late for BEGIN IMMEDIATE
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("llmops_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not connection.dialect.has_table(connection, "alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError
    from filelock import FileLock

    database = make_url(engine.url).database or ""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["engine"] = engine
    with FileLock(f"{database}.migrate.lock", timeout=60):
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise CouldNotRun(
                f"database {database}: {error}; it was written by a newer llmops, install that"
            ) from error
