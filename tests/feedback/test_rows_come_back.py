"""What raters wrote, typed prompts and withdrawals survive a backup, as the ratings do."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from llmops.ledger import Ledger
from llmops.ratings.added import Owned, typed_item
from llmops.ratings.check import verify_ratings
from llmops.ratings.rows import Answer
from llmops.ratings.withdrawn import withdraw
from llmops.settings import Workspace, find_workspace
from llmops.store import Store
from llmops.tables import metadata
from tests.in_process import llmops
from tests.ratings.campaign import book_of, make_campaign


def rows_of(workspace: Workspace) -> dict[str, list[dict[str, object]]]:
    tables = ("ratings", "showings", "rating_texts", "item_texts", "withdrawn_raters")
    found = {}
    with Ledger.of(workspace).engine.connect() as connection:
        for name in tables:
            table = metadata.tables[name]
            query = select(table).order_by(*table.primary_key.columns)
            found[name] = [dict(row) for row in connection.execute(query).mappings()]
    return found


def test_texts_items_and_withdrawals_come_back(workspace: Workspace, tmp_path: Path) -> None:
    book = book_of(workspace, make_campaign(workspace, [], origin="typed"))
    for rater in ("ann", "ben"):
        new = typed_item(f"{rater} asks", ("one", "two"), ("a" * 64, "b" * 64))
        showing = book.add([Owned(new, rater)], rater)
        assert showing is not None
        book.rate(showing.id, Answer("left", tags=("clear",), note="because", dwell_ms=5, key="k"))
    withdraw(Ledger.of(workspace), "ann", "asked to", delete_texts=True)
    before = rows_of(workspace)
    assert {name: len(rows) for name, rows in before.items()} == {
        "ratings": 2, "showings": 2, "rating_texts": 1, "item_texts": 1, "withdrawn_raters": 1,
    }  # fmt: skip
    saved = llmops(workspace.root, "backup", str(tmp_path / "saved.tar"))
    assert saved.code == 0, saved.err
    back = llmops(tmp_path, "restore", str(tmp_path / "saved.tar"), str(tmp_path / "back"))
    assert back.code == 0, back.err
    restored = find_workspace(tmp_path / "back")
    assert rows_of(restored) == before
    assert verify_ratings(Store.of(restored), Ledger.of(restored)) == 2
