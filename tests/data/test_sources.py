"""Databases and hub datasets as sources, and all kinds through `llmops data build`: told formats, no secret shown."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from llmops.cli.commands import app
from llmops.data import build_snapshot, load_pool
from llmops.data.sources import HubSource, SqlSource, open_source
from llmops.errors import ConfigError, CouldNotRun, DataError, LlmopsError
from llmops.records import Row
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from tests.data.containers import WRITERS, write_csv, write_jsonl, write_parquet
from tests.data.web import Answer, serve

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}", "group": f"g{i}"} for i in range(20)]
QUERY = "SELECT prompt, completion, part AS 'group' FROM rows ORDER BY number"


def write_sqlite(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE rows (number INTEGER, prompt TEXT, completion TEXT, part TEXT)")
        lines = [(i, row["prompt"], row["completion"], row.get("group")) for i, row in enumerate(rows)]
        database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", lines)
    database.close()
    return path


def sql(**settings: Any) -> SqlSource:
    return SqlSource(kind="sql", **{"query": QUERY, **settings})


def read(source: Any, folder: Path) -> list[Row]:
    (part,) = open_source(source, folder)
    rows = list(part.found)
    assert all(isinstance(row, Row) for row in rows), rows
    return [row for row in rows if isinstance(row, Row)]


def test_query_of_an_sqlite_file_beside_the_yaml_gives_its_rows_in_order(tmp_path: Path) -> None:
    write_sqlite(tmp_path / "rows.db")
    rows = read(sql(url="sqlite:///rows.db"), tmp_path)
    assert [(row.messages[0].content, row.group, row.source) for row in rows] == [
        (f"p{i}", f"g{i}", f"rows.db:{i + 1}") for i in range(20)
    ]


def test_turns_in_a_text_column_are_turns_and_colons_are_text(tmp_path: Path) -> None:
    turns = json.dumps([{"role": "user", "content": "a:b"}, {"role": "assistant", "content": "c"}])
    write_sqlite(tmp_path / "rows.db", [{"prompt": turns, "completion": "x"}])
    query = "SELECT prompt AS messages, ':y' AS note, 100 % 7 AS rest FROM rows ORDER BY 1"
    (row,) = read(sql(url="sqlite:///rows.db", query=query), tmp_path)
    assert [m.content for m in row.messages] == ["a:b", "c"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ConfigError, "needs one of url and url_env"),
        ({"url": "sqlite:///gone.db"}, DataError, r"gone\.db: no such file"),
        ({"url": "not an address"}, ConfigError, "the url is none that SQLAlchemy knows"),
        ({"url": "martian://host/x"}, ConfigError, "martian:// needs a driver that is not installed"),
        (
            {"url": "sqlite:///rows.db", "query": "SELECT absent FROM rows ORDER BY 1"},
            DataError,
            "no such column",
        ),
        (
            {"url": "sqlite:///rows.db", "query": "DELETE FROM rows -- order by"},
            DataError,
            "readonly database|no rows",
        ),
        (
            {"url": "sqlite:///rows.db", "query": "SELECT prompt, prompt FROM rows ORDER BY 1"},
            DataError,
            "column prompt twice",
        ),
        ({"url_env": "NO_SUCH_URL"}, ConfigError, "the environment variable NO_SUCH_URL is not set"),
        (
            {"url": "postgresql+psycopg://u@127.0.0.1:9/x", "password_env": "PGPW"},
            CouldNotRun,
            "127.0.0.1/x cannot be reached",
        ),
    ],
)
def test_database_that_cannot_be_read_is_named_and_its_password_is_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    error: type[LlmopsError],
    message: str,
) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setenv("PGPW", "s3cr3t")
    path = write_sqlite(tmp_path / "rows.db")
    with pytest.raises(error, match=message) as caught:
        read(sql(**settings), tmp_path)
    assert "s3cr3t" not in str(caught.value)
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM rows").fetchone() == (20,)


def test_url_of_a_database_may_stand_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sqlite(tmp_path / "rows.db")
    monkeypatch.setenv("ROWS_URL", f"sqlite:///{tmp_path}/rows.db")
    assert len(read(sql(url_env="ROWS_URL"), Path("elsewhere"))) == 20


def hub(**settings: Any) -> HubSource:
    return HubSource(kind="hub", **settings)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("container", ["jsonl", "parquet"])
def test_folder_goes_through_the_loader_of_hub_datasets(
    tmp_path: Path, container: str, streaming: bool
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    WRITERS[container](folder / f"train.{container}", ROWS)
    rows = read(hub(dataset="./mine", streaming=streaming), tmp_path)
    assert [(row.messages[0].content, row.source) for row in rows] == [
        (f"p{i}", f"mine/train:{i + 1}") for i in range(20)
    ]


def test_dataset_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        CouldNotRun, match=r"^hub dataset some/set/train: cannot be fetched \(.*; check the network"
    ):
        read(hub(dataset="some/set"), tmp_path)
    with pytest.raises(DataError, match=r"^hub dataset gone/train: cannot be loaded \(.*no such folder"):
        read(hub(dataset="./gone"), tmp_path)
    (tmp_path / "mine").mkdir()
    write_jsonl(tmp_path / "mine/train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"^hub dataset mine/test: cannot be loaded \(.*test") as caught:
        read(hub(dataset="./mine", split="test"), tmp_path)
    assert "\n" not in str(caught.value)


def config(folder: Path, source: dict[str, Any]) -> Path:
    path = folder / "mine.yaml"
    pools = {"train": 0.6, "rate": 0.0, "gate": 0.4}
    settings = {"name": "mine", "licence": "CC0-1.0", "origin": "a test", "source": source, "pools": pools}
    path.write_text(yaml.safe_dump(settings))
    return path


def run(workspace: Workspace, *words: str) -> Result:
    return CliRunner(env={"LLMOPS_WORKSPACE": str(workspace.root)}).invoke(app, [*words])


def test_every_kind_of_source_builds_the_same_dataset_and_names_its_format(workspace: Workspace) -> None:
    root = workspace.root
    write_csv(root / "rows.csv", ROWS[:10])
    write_parquet(root / "more.parquet", ROWS[10:])
    write_sqlite(root / "rows.db")
    (root / "hub").mkdir()
    write_jsonl(root / "hub/train.jsonl", ROWS)
    registry = Registry.of(workspace)
    with serve(lambda path, nth: Answer(json.dumps(ROWS).encode())) as web:
        sources: dict[str, dict[str, Any]] = {
            "rows.csv (prompt-completion), more.parquet (prompt-completion)": {
                "kind": "files",
                "paths": ["rows.csv", "more.parquet"],
            },
            "rows.db (prompt-completion)": {"kind": "sql", "url": "sqlite:///rows.db", "query": QUERY},
            "hub/train (prompt-completion)": {"kind": "hub", "dataset": "./hub"},
            "127.0.0.1/rows (prompt-completion)": {"kind": "http", "url": f"{web.url}/rows"},
        }
        for told, source in sources.items():
            done = run(workspace, "data", "build", str(config(root, source)))
            assert done.exit_code == 0, done.output
            assert f"(CC0-1.0; a test; read from {told})\n" in done.output
            assert f"read from {told})\n" in run(workspace, "data", "show", "mine").output
            snapshot = build_snapshot(root / "mine.yaml", registry.store, registry.ledger)
            rows = load_pool(registry.store, snapshot, "train") + load_pool(registry.store, snapshot, "gate")
            assert sorted(row.messages[0].content for row in rows) == sorted(row["prompt"] for row in ROWS)


def test_preferences_make_no_dataset(workspace: Workspace) -> None:
    write_jsonl(workspace.root / "p.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    registry = Registry.of(workspace)
    with pytest.raises(
        DataError, match=r"p\.jsonl: holds rows in format preference, which is no conversation"
    ):
        build_snapshot(
            config(workspace.root, {"kind": "files", "paths": ["p.jsonl"]}), registry.store, registry.ledger
        )


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "sql", "url": "postgresql://me:s3cr3t@host/db", "query": QUERY},
        {"kind": "sql", "url": "mssql+pyodbc://?odbc_connect=DRIVER=x;PWD=s3cr3t", "query": QUERY},
        {"kind": "http", "url": "https://host/rows?token=s3cr3t"},
    ],
)
def test_secret_in_the_yaml_is_refused_through_the_command_line_and_never_shown(
    workspace: Workspace, source: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(workspace, "data", "build", str(config(workspace.root, source)))
    said = done.output + str(done.exception)
    assert "holds a password or key; put it into an environment variable" in said
    assert "s3cr3t" not in said
    assert isinstance(done.exception, ConfigError)


def test_query_without_an_order_is_refused(workspace: Workspace) -> None:
    source = {"kind": "sql", "url": "sqlite:///rows.db", "query": "SELECT prompt, completion FROM rows"}
    done = run(workspace, "data", "build", str(config(workspace.root, source)))
    assert "has no ORDER BY" in str(done.exception)
