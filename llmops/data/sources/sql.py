"""Rows of an SQL query, read as a stream in a transaction that writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmops.data.containers.cells import row_of_cells
from llmops.data.formats import Raw
from llmops.data.sources.config import SqlSource
from llmops.data.sources.environment import from_environment, without
from llmops.errors import ConfigError, CouldNotRun, DataError

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult
    from sqlalchemy.engine import URL

ROWS_A_FETCH = 500


def database_url(source: SqlSource, folder: Path) -> URL:
    """The address of a source's database, with its password; SQLite files are relative to `folder`.

    Raises:
        ConfigError: it is no address, an environment variable is missing, or there is not one address.
        DataError: there is no such SQLite file.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if (source.url is None) == (source.url_env is None):
        raise ConfigError("source sql: needs one of url and url_env; give one")
    given = source.url or from_environment(source.url_env or "", "source sql: url_env")
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise ConfigError(
            "source sql: the url is none that SQLAlchemy knows; write DIALECT://USER@HOST/NAME, or sqlite:///FILE"
        ) from None
    if source.password_env is not None:
        url = url.set(password=from_environment(source.password_env, "source sql: password_env"))
    if url.get_backend_name() != "sqlite":
        return url
    path = folder / (url.database or "")
    if not path.is_file():  # SQLite would make an empty one
        raise DataError(f"{path}: no such file; correct the url")
    return url.set(database=str(path))


def sql_name(url: URL) -> str:
    """What rows of a database carry as their place: SQLite's file name, else host and database."""
    if url.get_backend_name() == "sqlite":
        return Path(url.database or "").name
    return f"{url.host or url.get_backend_name()}/{url.database or ''}"


def read_sql(url: URL, query: str) -> Iterator[Raw]:
    """Every row of a query, counted from 1.

    Raises:
        ConfigError: the database's driver is not installed.
        CouldNotRun: the database does not answer.
        DataError: it refuses the query, or that is no SELECT.
    """
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    name, secret = sql_name(url), url.password if isinstance(url.password, str) else None
    try:
        engine = create_engine(url, poolclass=NullPool)
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigError(
            f"source sql: {url.drivername}:// needs a driver that is not installed ({without(secret, str(error))}); "
            "install it with pip, or name another one as DIALECT+DRIVER://"
        ) from None
    try:
        connection = engine.connect()
    except (SQLAlchemyError, ImportError) as error:
        raise CouldNotRun(
            f"source sql: {name} cannot be reached ({_reason(error, secret)}); check the address and the password"
        ) from None
    n_read = 0
    with connection:
        try:
            for n_read, cells in enumerate(_rows(connection, query, name), start=1):
                yield Raw(row_of_cells(cells), f"{name}:{n_read}")
        except SQLAlchemyError as error:
            when = f"after {n_read:,} rows" if n_read else "the query fails"
            raise DataError(
                f"source sql: {name}: {when} ({_reason(error, secret)}); correct the query"
            ) from None


def _rows(connection: Connection, query: str, name: str) -> Iterator[dict[str, object]]:
    from sqlalchemy import text

    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only = ON")
    elif connection.dialect.name == "postgresql":
        connection.rollback()
        connection = connection.execution_options(postgresql_readonly=True)
    connection = connection.execution_options(stream_results=True, yield_per=ROWS_A_FETCH)
    # A colon is no parameter of ours.
    result: CursorResult[*tuple[object, ...]] = connection.execute(text(query.replace(":", r"\:")))
    if not result.returns_rows:
        raise DataError(f"source sql: {name}: the query gives no rows; write a SELECT")
    columns = list(result.keys())
    if len(set(columns)) < len(columns):
        twice = next(c for i, c in enumerate(columns) if c in columns[:i])
        raise DataError(
            f"source sql: {name}: the query gives column {twice} twice; name one of them otherwise"
        )
    for row in result:
        yield dict(zip(columns, row, strict=True))


def _reason(error: Exception, secret: str | None) -> str:
    """The driver's own first line; SQLAlchemy's goes on with the statement."""
    return without(secret, str(getattr(error, "orig", None) or error))
