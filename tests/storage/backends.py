"""Where a workspace's state can lie in a test: its own folder, or a real PostgreSQL and a real S3 server."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmops.settings import Workspace, find_workspace
from tests.loop import Loop


@dataclass(frozen=True)
class Backend:
    """The variables that choose where state lies; `execute` changes rows as somebody beside llmops would."""

    name: str
    execute: Callable[[str], None]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def shared(self) -> bool:
        """Whether several workspaces see the same state."""
        return bool(self.env)


@dataclass(frozen=True)
class BackedLoop(Loop):
    """A loop whose commands run under a backend's variables."""

    env: dict[str, str]

    def environment(self) -> dict[str, str]:
        return super().environment() | self.env


@dataclass(frozen=True)
class Bucket:
    """One bucket of the S3 server, seen as boto3 sees it."""

    name: str
    client: Any

    def keys(self) -> list[str]:
        """All keys, sorted."""
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return sorted(row["Key"] for row in found)

    def contents(self) -> dict[str, bytes]:
        """Every object by its key."""
        return {key: self.read(key) for key in self.keys()}

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)

    def find(self, end: str) -> str:
        """The only key that ends so."""
        (key,) = [key for key in self.keys() if key.endswith(end)]
        return key


def execute_on_file(path: Path) -> Callable[[str], None]:
    """Run a statement on an SQLite file."""

    def execute(statement: str) -> None:
        with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
            connection.execute(statement)

    return execute


def execute_on_server(uri: str) -> Callable[[str], None]:
    """Run a statement on a PostgreSQL database."""

    def execute(statement: str) -> None:
        import psycopg

        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute(statement)

    return execute


def another_workspace(root: Path) -> Workspace:
    """A second workspace, as another machine would have one."""
    root.mkdir()
    (root / "llmops.yaml").write_text("name: other\n")
    return find_workspace(root)


@contextmanager
def s3_server() -> Iterator[str]:
    """A running S3 server's address."""
    import logging

    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
