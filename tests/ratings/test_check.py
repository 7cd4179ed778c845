"""Whatever is changed about ratings behind the page's back is found, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, insert, select, update

from llmops.db import writing
from llmops.errors import InvalidEvidence
from llmops.ledger import Ledger
from llmops.ratings.check import verify_ratings
from llmops.ratings.outcomes import OF_THE_ROW, live, outcome, votes_by_item
from llmops.records import Campaign, Rating
from llmops.settings import Workspace
from llmops.store import Store
from llmops.tables import ratings, showings
from tests.loop import Loop
from tests.ratings.campaign import book_of, item, make_book, make_campaign, vote


def check(workspace: Workspace, campaign: Campaign | None = None) -> int:
    digest = campaign.digest() if campaign else None
    return verify_ratings(Store.of(workspace), Ledger.of(workspace), digest)


def rated(workspace: Workspace) -> Campaign:
    """Ratings 1 and 2 by Ann, 3 by Ben; 4 is Ann's second thought about the item of 1."""
    book = make_book(workspace, n_items=3)
    first = book.next("ann")
    assert first is not None
    book.rate(first.id, "left")
    vote(book, "ann", "second")
    vote(book, "ben", "tie")
    book.rate(first.id, "right")
    return book.campaign


def edited(number: int, /, **values: object) -> Callable[[Connection], object]:
    return lambda c: c.execute(update(ratings).where(ratings.c.number == number).values(**values))


def forged(connection: Connection) -> None:
    """An answer changed together with the row's own digest."""
    row = connection.execute(select(ratings).where(ratings.c.number == 2)).mappings().one()
    fields = {k: v for k, v in row.items() if k not in OF_THE_ROW} | {"choice": "both_bad"}
    edited(2, choice="both_bad", digest=Rating(**fields).digest)(connection)


def swapped_showing(connection: Connection) -> None:
    shown = select(ratings.c.showing).where(ratings.c.number == 2).scalar_subquery()
    connection.execute(update(showings).where(showings.c.id == shown).values(left=1 - showings.c.left))


def inserted(connection: Connection) -> None:
    row = dict(connection.execute(select(ratings).where(ratings.c.number == 3)).mappings().one())
    row |= {"number": 5, "rater": "eve", "digest": "f" * 64}
    connection.execute(insert(ratings).values(**row))


TAMPERED = {
    "answer": (edited(2, choice="both_bad"), "#2 was changed after it was given"),
    "answer with its digest": (forged, "#2 was changed after it was given"),
    "rater": (edited(3, rater="eve"), "#3 was changed after it was given"),
    "time": (edited(3, at="2020-01-01T00:00:00.000Z"), "#3 was changed after it was given"),
    "side in the rating": (edited(2, left=1 - ratings.c.left), "#2 was changed after it was given"),
    "side in the showing": (swapped_showing, "the showing of #2 was changed"),
    "lost showing": (lambda c: c.execute(delete(showings)), "the showing of #1 was changed"),
    "deleted": (lambda c: c.execute(delete(ratings).where(ratings.c.number == 2)), "#2 is missing"),
    "deleted last": (lambda c: c.execute(delete(ratings).where(ratings.c.number == 4)), "#4 is missing"),
    "inserted": (inserted, "#5 is not in the ledger"),
    "vote taken out": (edited(3, live=False), "whether #3 counts was changed"),
    "old vote put back": (lambda c: [edited(4, live=False)(c), edited(1, live=True)(c)], "whether #1 counts"),
    "renumbered": (edited(3, number=7), "#3 is missing"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tampering_is_found_and_named(workspace: Workspace, what: str) -> None:
    tamper, said = TAMPERED[what]
    campaign = rated(workspace)
    assert check(workspace) == 4
    with writing(Ledger.of(workspace).engine) as connection:
        tamper(connection)
    for about in (None, campaign):
        with pytest.raises(InvalidEvidence, match=said):
            check(workspace, about)


def items_file(workspace: Workspace, campaign: Campaign) -> Path:
    return Store.of(workspace).path("items", campaign.items) / "items.jsonl"


def test_changed_item_is_found_where_it_is_counted_and_where_it_is_asked(workspace: Workspace) -> None:
    campaign = rated(workspace)
    path = items_file(workspace, campaign)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"second 1", b"second 9"))
    with pytest.raises(InvalidEvidence, match=r"items\.jsonl was changed"):
        check(workspace)
    with pytest.raises(InvalidEvidence, match=r"items\.jsonl was changed"):
        book_of(workspace, campaign)


def test_damage_to_one_campaign_leaves_another_standing(workspace: Workspace) -> None:
    first = rated(workspace)
    other = make_campaign(workspace, [item(7)], name="other")
    vote(book_of(workspace, other), "ann", "first")
    with writing(Ledger.of(workspace).engine) as connection:
        edited(2, choice="skip")(connection)
    assert check(workspace, other) == 1
    with pytest.raises(InvalidEvidence, match="#2 was changed"):
        check(workspace, first)


def test_ratings_come_out_of_the_database_as_they_went_in(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=6)
    given = [vote(book, "ann", says) for says in ("first", "second", "tie", "both_bad", "skip", "first")]
    again = book_of(workspace, book.campaign).ratings()
    assert [r.item for r in again] == given
    counted = {digest: outcome(votes) for digest, votes in votes_by_item(again).items()}
    expected = dict(zip(given, ("first", "second", "tie", "both_bad", "skip", "first"), strict=True))
    del expected[given[4]]
    assert counted == expected
    assert live(again) == again
    said = [e.body["rating"] for e in Ledger.of(workspace).events("rating.given")]
    assert said == [r.digest for r in again]


def test_ledger_holds_no_word_of_what_people_rated(workspace: Workspace) -> None:
    rated(workspace)
    bodies = json.dumps([e.body for e in Ledger.of(workspace).events()])
    assert "rating" in bodies
    for word in ("question", "first ", "second ", "ann", "ben", "left", "tie"):
        assert word not in bodies


def test_command_line_tells_of_tampering_with_exit_code_4(workspace: Workspace, tmp_path: Path) -> None:
    rated(workspace)
    loop = Loop(workspace.root, tmp_path)
    assert loop.llmops("feedback", "ratings", "docs").code == 0
    with writing(Ledger.of(workspace).engine) as connection:
        edited(2, choice="skip")(connection)
    done = loop.llmops("feedback", "ratings", "docs", check=False)
    assert (done.code, done.out) == (4, "")
    assert "ratings: #2 was changed after it was given" in done.err


def test_rating_given_after_the_newest_row_was_deleted_hides_nothing(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=4)
    vote(book, "ann", "first")
    vote(book, "ben", "tie")
    with writing(Ledger.of(workspace).engine) as connection:
        connection.execute(delete(ratings).where(ratings.c.number == 2))
    vote(book, "cleo", "tie")
    assert [r.number for r in book.ratings()] == [1, 3]
    with pytest.raises(InvalidEvidence, match="#2 is missing"):
        check(workspace, book.campaign)


def test_cut_link_to_an_earlier_rating_is_named_at_the_row_that_was_changed(workspace: Workspace) -> None:
    rated(workspace)
    with writing(Ledger.of(workspace).engine) as connection:
        edited(4, supersedes=None)(connection)
    with pytest.raises(InvalidEvidence, match="#4 was changed after it was given"):
        check(workspace)
