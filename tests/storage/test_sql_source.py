"""Rows of a real PostgreSQL query: streamed, read-only, and the password only from the environment."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llmops.data.sources import SqlSource, open_source
from llmops.errors import DataError
from llmops.records import Row
from tests.storage.backends import execute_on_server


def url_of(database: str) -> str:
    """SQLAlchemy's address of the server, whose socket lies in a folder."""
    parts = urlsplit(database)
    return f"postgresql+psycopg://{parts.username}@/{parts.path.strip('/')}?{parts.query}"


def read(url: str, query: str) -> list[Row]:
    (part,) = open_source(SqlSource(kind="sql", url=url, password_env="ROWS_PASSWORD", query=query), Path())
    rows = list(part.found)
    assert all(isinstance(row, Row) for row in rows), rows[:3]
    return [row for row in rows if isinstance(row, Row)]


def test_rows_of_a_postgres_query_are_streamed_in_order(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS_PASSWORD", "s3cr3t")
    execute = execute_on_server(database)
    execute("CREATE SEQUENCE counter")
    execute("CREATE TABLE rows (id int, messages jsonb, note text)")
    execute(
        "INSERT INTO rows SELECT i, jsonb_build_array(jsonb_build_object('role', 'user', 'content', 'q:' || i), "
        "jsonb_build_object('role', 'assistant', 'content', 'a')), 'x' FROM generate_series(1, 1200) AS i"
    )
    rows = read(url_of(database), "SELECT messages, note::text FROM rows WHERE id % 2 = 0 ORDER BY id DESC")
    assert [row.messages[0].content for row in rows] == [f"q:{i}" for i in range(1200, 0, -2)]
    assert rows[-1].source.endswith(":600")
    with pytest.raises(DataError, match="read-only transaction"):
        read(url_of(database), "SELECT messages, nextval('counter') FROM rows ORDER BY id")
    with pytest.raises(DataError, match="the query fails"):
        read(url_of(database), "DELETE FROM rows RETURNING messages /* order by */")
    assert len(read(url_of(database), "SELECT messages FROM rows ORDER BY id")) == 1200
