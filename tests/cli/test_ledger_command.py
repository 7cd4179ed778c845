from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.registry.releases import request_override
from llmops.settings import find_workspace
from tests.evidence import activate, register
from tests.loop import Loop
from tests.ratings.campaign import make_book


@pytest.fixture
def loop(tmp_path: Path, tiny_model: Path, tiny_adapter: Path) -> Loop:
    """A workspace with one release, hence one anchor outside the database."""
    (tmp_path / "llmops.yaml").write_text("name: chain\n")
    registry = Registry.of(find_workspace(tmp_path))
    adapter = register(registry, resolve_base(str(tiny_model)), tiny_adapter)
    registry.ledger.append("run.started", {"run": "r1"})
    activate(registry, request_override(registry, "docs", adapter, "a reason long enough")[0])
    return Loop(tmp_path, tmp_path / "cache")


def _tamper(loop: Loop, statement: str) -> None:
    with sqlite3.connect(loop.root / ".llmops/llmops.db") as connection:
        connection.execute(statement)


def test_whole_chain_verifies_and_is_printed(loop: Loop) -> None:
    assert loop.llmops("ledger", "verify").out == (
        "ledger: 4 events, chain whole, 1 anchors outside the database agree\n"
        "ratings: 0 ratings agree, with their sides, items and campaigns\n"
    )
    kinds = [json.loads(line)["kind"] for line in loop.llmops("ledger", "log", "--json").out.splitlines()]
    assert kinds == ["adapter.registered", "run.started", "release.requested", "release.activated"]
    assert "release.requested" in loop.llmops("ledger", "log", "--kind", "release").out


def test_edited_row_is_named_with_exit_4(loop: Loop) -> None:
    _tamper(loop, "UPDATE events SET body = replace(body, 'r1', 'r2') WHERE seq = 2")
    done = loop.llmops("ledger", "verify", check=False)
    assert (done.code, done.err) == (
        4,
        "error: ledger: event 2 (run.started) was edited; restore the database\n",
    )


def test_deleted_tail_is_noticed_through_the_release_record(loop: Loop) -> None:
    _tamper(loop, "DELETE FROM events WHERE seq >= 2")
    done = loop.llmops("ledger", "verify", check=False)
    assert done.code == 4
    assert "ends at event 1, but the release of docs" in done.err
    assert "was bound to event 2" in done.err


def test_status_shows_a_damaged_release_beside_what_still_stands(loop: Loop) -> None:
    (record,) = (loop.root / ".llmops/store/release_record").iterdir()
    (record / "record.json").chmod(0o644)
    (record / "record.json").write_text("{}")
    done = loop.llmops("status")
    assert "docs       BROKEN: " in done.out
    assert "unfinished r1, since 20" in done.out


@pytest.fixture
def rated(tmp_path: Path) -> Loop:
    """A workspace with one campaign and three ratings by ann: left, left, and the second again as right."""
    (tmp_path / "llmops.yaml").write_text("name: rated\n")
    book = make_book(find_workspace(tmp_path))
    shown = []
    for _ in range(2):
        showing = book.next("ann")
        assert showing is not None
        shown.append(showing.id)
        book.rate(showing.id, "left")
    book.rate(shown[1], "right")
    return Loop(tmp_path, tmp_path / "cache")


def test_ratings_are_verified_with_the_chain(rated: Loop) -> None:
    assert rated.llmops("ledger", "verify").out == (
        "ledger: 4 events, chain whole, 0 anchors outside the database agree\n"
        "ratings: 3 ratings agree, with their sides, items and campaigns\n"
    )


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "UPDATE ratings SET choice = 'tie' WHERE number = 1",
            "#1 was changed after it was given (event 2, ",
        ),
        (
            "UPDATE ratings SET left = 1 - left WHERE number = 2",
            "#2 was changed after it was given (event 3, ",
        ),
        ("UPDATE ratings SET live = 1 - live WHERE number = 1", "whether #1 counts was changed"),
        (
            "UPDATE showings SET left = 1 - left WHERE id = (SELECT showing FROM ratings WHERE number = 1)",
            "the showing of #1 was changed (sides, item or rater)",
        ),
        ("DELETE FROM ratings WHERE number = 3", "#3 is missing from the database"),
        ("DELETE FROM ratings", "#1 is missing from the database"),
        (
            "INSERT INTO ratings (number, digest, campaign, item, rater, showing, left, choice, at, supersedes, live) "
            "SELECT 9, 'made up', campaign, item, 'eve', showing, left, choice, at, NULL, 1 "
            "FROM ratings WHERE number = 1",
            "#9 is not in the ledger",
        ),
    ],
)
def test_touched_rating_is_named_with_exit_4(rated: Loop, statement: str, said: str) -> None:
    _tamper(rated, statement)
    done = rated.llmops("ledger", "verify", check=False)
    assert done.code == 4
    assert done.err.startswith(f"error: ratings: {said}")
    assert "chain whole" in done.out  # the chain itself still is


def test_changed_item_of_a_campaign_is_named_with_exit_4(rated: Loop) -> None:
    (items,) = rated.root.glob(".llmops/store/items/*/items.jsonl")
    items.chmod(0o644)
    items.write_text(items.read_text().replace("first 1", "other 1"))
    done = rated.llmops("ledger", "verify", check=False)
    assert done.code == 4
    assert "items.jsonl" in done.err
