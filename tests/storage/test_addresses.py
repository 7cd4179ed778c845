"""Addresses of databases: which are taken, what is said of the others, and that no message shows a password."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmops import db
from llmops.db import open_database, writing
from llmops.errors import ConfigError, CouldNotRun, StoreError
from llmops.ledger import Ledger
from llmops.settings import Workspace, find_workspace
from tests import in_process
from tests.in_process import Done
from tests.storage.backends import execute_on_server


@pytest.fixture
def plain(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> Workspace:
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    return find_workspace(tmp_path)


def _llmops(workspace: Workspace, *arguments: str) -> Done:
    return in_process.llmops(workspace.root, *arguments)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://ann:s%40crt@db.example:5433/llmops?sslmode=require",
         "postgresql+psycopg://ann:s%40crt@db.example:5433/llmops?sslmode=require"),
        ("postgresql+psycopg2://ann@db.example/llmops", "postgresql+psycopg://ann@db.example/llmops"),
        ("sqlite:////data/llmops.db", "sqlite:////data/llmops.db"),
    ],
)  # fmt: skip
def test_address_is_taken_with_the_driver_that_is_there(
    plain: Workspace, clean_env: pytest.MonkeyPatch, given: str, used: str
) -> None:
    clean_env.setenv("LLMOPS_DATABASE_URL", given)
    assert plain.database_url == used


def test_without_the_variable_the_database_is_the_workspaces_file(plain: Workspace) -> None:
    assert plain.database_url == f"sqlite:///{plain.root}/.llmops/llmops.db"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "mysql://ann:secret@db/llmops",
            r"mysql:// cannot be used; give postgresql://user:password@host/name",
        ),
        ("postgres://ann:secret@db/llmops", r"postgres:// cannot be used; give postgresql://"),
        ("ann:secret@db", "is not the URL of a database; give postgresql://"),
        ("postgresql://ann:secret@db:port/llmops", "is not the URL of a database"),
        ("sqlite:///secret.db", r"is no absolute path; give .*sqlite:////folder/name\.db"),
        ("sqlite://", "no file is no absolute path"),
    ],
)
def test_address_that_cannot_be_used_ends_a_command_with_2(
    plain: Workspace, clean_env: pytest.MonkeyPatch, given: str, message: str
) -> None:
    clean_env.setenv("LLMOPS_DATABASE_URL", given)
    with pytest.raises(ConfigError, match=f"LLMOPS_DATABASE_URL: .*{message}") as caught:
        Ledger.of(plain)
    assert "ann:secret" not in str(caught.value)
    if "mysql" in given:
        done = _llmops(plain, "ledger", "verify")
        assert done.code == 2
        assert str(caught.value) in done.err


def test_database_that_does_not_answer_ends_a_command_with_5_and_shows_no_password(
    plain: Workspace, clean_env: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg", reason="needs psycopg, PostgreSQL's driver")
    clean_env.setenv("LLMOPS_DATABASE_URL", "postgresql://ann:secret@127.0.0.1:9/llmops")
    done = _llmops(plain, "ledger", "verify")
    assert done.code == 5
    (line,) = done.err.strip().splitlines()
    assert "database postgresql+psycopg://ann:***@127.0.0.1:9/llmops: cannot be opened" in line
    assert "check LLMOPS_DATABASE_URL, and that the server runs" in line
    assert "secret" not in done.err + done.out


def test_missing_driver_says_what_to_install(plain: Workspace, clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("LLMOPS_DATABASE_URL", "postgresql://127.0.0.1:9/llmops")
    clean_env.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'llmops\[postgres\]'"):
        Ledger.of(plain)


def test_database_on_a_file_of_another_kind_is_named(plain: Workspace) -> None:
    (plain.state / "llmops.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(CouldNotRun, match=r"llmops\.db: cannot be opened \(file is not a database\)"):
        Ledger.of(plain)


def test_folder_that_is_not_there_is_named(plain: Workspace, clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("LLMOPS_DATABASE_URL", f"sqlite:///{plain.root}/gone/llmops.db")
    with pytest.raises(
        CouldNotRun, match=r"gone/llmops\.db: cannot be opened \(unable to open database file\); check"
    ):
        Ledger.of(plain)


def test_engine_stays_open_and_another_file_in_its_place_is_noticed(plain: Workspace) -> None:
    first = Ledger.of(plain)
    first.append("run.started", {"run": "1"})
    assert Ledger.of(plain).engine is first.engine
    first.engine.dispose()  # so that the file alone holds everything
    saved = (plain.state / "llmops.db").rename(plain.state / "saved.db")
    assert Ledger.of(plain).events() == []
    Ledger.of(plain).engine.dispose()
    saved.replace(plain.state / "llmops.db")
    assert [event.body["run"] for event in Ledger.of(plain).events()] == ["1"]


def test_forked_child_writes_over_connections_of_its_own(on_postgres: Workspace) -> None:
    code = """
import os, sys
from pathlib import Path
from llmops.ledger import Ledger
from llmops.settings import find_workspace
workspace = find_workspace(Path(sys.argv[1]))
ledger = Ledger.of(workspace)
child = os.fork()
if child == 0:
    ledger = Ledger.of(workspace)
for _ in range(100):
    ledger.append("run.started", {"run": "child" if child == 0 else "parent"})
if child == 0:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    command = [sys.executable, "-c", code, str(on_postgres.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert Ledger.of(on_postgres).verify() == 200


def test_server_that_ended_our_connections_is_met_again(on_postgres: Workspace, postgres_uri: str) -> None:
    ledger = Ledger.of(on_postgres)
    ledger.append("run.started", {"run": "1"})
    name = ledger.engine.url.database
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    execute_on_server(postgres_uri)(end)
    ledger.append("run.started", {"run": "2"})
    with pytest.raises(StoreError, match="could not be written"), writing(ledger.engine) as connection:
        connection.exec_driver_sql(end.replace("WHERE", "WHERE pid = pg_backend_pid() AND"))
    assert ledger.verify() == 2


def test_database_that_may_only_be_read_refuses_writes(on_postgres: Workspace, database: str) -> None:
    Ledger.of(on_postgres)
    name = open_database(on_postgres.database_url).url.database
    execute_on_server(database)(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    open_database(on_postgres.database_url).dispose()
    with pytest.raises(StoreError, match="read-only transaction"):
        Ledger.of(on_postgres).append("run.started", {"run": "1"})


def test_writer_sees_what_was_committed_while_it_waited_whatever_the_servers_default(
    on_postgres: Workspace, database: str
) -> None:
    """Under a stricter default the head would be read as of before the wait, and the next number written twice."""
    import threading

    Ledger.of(on_postgres)
    engine = open_database(on_postgres.database_url)
    execute_on_server(database)(
        f"ALTER DATABASE {engine.url.database} SET default_transaction_isolation = 'repeatable read'"
    )
    engine.dispose()
    threads = [
        threading.Thread(
            target=lambda: [Ledger(engine).append("run.started", {"run": "x"}) for _ in range(20)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Ledger.of(on_postgres).verify() == 80


def test_few_engines_are_kept_open(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    for n in range(10):
        open_database(f"sqlite:///{tmp_path}/{n}.db")
    assert len(db._kept) == db.N_KEPT_OPEN
