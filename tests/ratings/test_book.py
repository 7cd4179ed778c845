"""What raters are shown and what is kept of their answers, with several of them at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise

import pytest
from sqlalchemy import insert, update
from sqlalchemy.exc import IntegrityError

from llmops.db import writing
from llmops.errors import BadRequest, StoreError
from llmops.ledger import Ledger
from llmops.ratings.book import RatingBook, Showing
from llmops.ratings.campaigns import close_campaign, put_items
from llmops.ratings.check import verify_ratings
from llmops.ratings.outcomes import row_of, vote_of
from llmops.settings import Workspace
from llmops.store import Store
from llmops.tables import ratings, showings
from tests.ratings.campaign import book_of, item, make_book, make_campaign, vote


def shown(showing: Showing | None) -> Showing:
    assert showing is not None
    return showing


def age(workspace: Workspace, showing: str) -> None:
    """Let a showing's lease run out."""
    with writing(Ledger.of(workspace).engine) as connection:
        connection.execute(
            update(showings).where(showings.c.id == showing).values(at="2020-01-01T00:00:00.000Z")
        )


def test_two_raters_share_the_items_and_none_is_rated_twice(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=7)
    other = book_of(workspace, book.campaign)
    seen = []
    for _ in range(4):
        a, b = book.next("ann"), other.next("ben")
        for who, showing in ((book, a), (other, b)):
            if showing is not None:
                seen.append(showing.item.digest)
                who.rate(showing.id, "left")
    assert sorted(seen) == sorted(i.digest for i in book.items())
    assert (book.next("ann"), other.next("ben")) == (None, None)
    standing = book.standing("ann")
    assert (standing.n_items, standing.n_full, standing.n_mine) == (7, 7, 4)
    assert book.settled()


def test_items_are_asked_in_the_campaigns_order(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=5)
    assert [vote(book, "ann", "tie") for _ in range(5)] == [i.digest for i in book.items()]


def test_reloading_shows_the_same_item_on_the_same_sides(workspace: Workspace) -> None:
    book = make_book(workspace)
    first = shown(book.next("ann"))
    assert {shown(book_of(workspace, book.campaign).next("ann")) for _ in range(20)} == {first}
    assert first.texts == (first.item.answers[first.left], first.item.answers[1 - first.left])


def test_showing_is_kept_over_a_long_break_while_its_item_lacks_votes(workspace: Workspace) -> None:
    book = make_book(workspace)
    first = shown(book.next("ann"))
    age(workspace, first.id)
    assert book.next("ann") == first


def test_item_is_kept_from_others_until_its_lease_runs_out(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=1)
    first = shown(book.next("ann"))
    assert book.next("ben") is None
    age(workspace, first.id)
    second = shown(book.next("ben"))
    assert (second.item, second.id != first.id) == (first.item, True)
    # Ann comes back: her item is Ben's now, but what she answers is never lost.
    assert book.next("ann") is None
    book.rate(first.id, "left")
    book.rate(second.id, "right")
    assert [r.rater for r in book.ratings()] == ["ann", "ben"]


def test_reading_on_keeps_an_item_for_its_rater(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=1)
    first = shown(book.next("ann"))
    age(workspace, first.id)
    assert book.next("ann") == first
    assert book.next("ben") is None


def test_each_item_gets_as_many_votes_as_the_campaign_asks(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=4, votes_per_item=2)
    done: Counter[str] = Counter()
    for _ in range(4):
        for rater in ("ann", "ben", "cid"):
            showing = book.next(rater)
            if showing is not None:
                done[showing.item.digest] += 1
                book.rate(showing.id, "tie")
    assert done == {i.digest: 2 for i in book.items()}
    by_item = Counter((r.item, r.rater) for r in book.ratings())
    assert set(by_item.values()) == {1}


def test_skipped_item_is_not_asked_again_of_its_rater_but_of_others(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=1)
    skipped = vote(book, "ann", "skip")
    assert book.next("ann") is None
    standing = book.standing("ann")
    assert (standing.n_full, standing.n_mine, book.settled()) == (0, 1, False)
    assert vote(book, "ben", "first") == skipped
    assert book.standing().n_full == 1


def test_another_answer_supersedes_the_first_and_both_stay(workspace: Workspace) -> None:
    book = make_book(workspace)
    showing = shown(book.next("ann"))
    one, two = book.rate(showing.id, "left"), book.rate(showing.id, "right")
    three = book.rate(showing.id, "left")
    assert [(r.number, r.choice, r.supersedes) for r in book.ratings()] == [
        (1, "left", None),
        (2, "right", one.digest),
        (3, "left", two.digest),
    ]
    assert three.left == showing.left
    assert book.standing("ann").n_mine == 1
    assert verify_ratings(Store.of(workspace), Ledger.of(workspace)) == 3


def test_the_same_answer_again_is_the_same_rating(workspace: Workspace) -> None:
    book = make_book(workspace)
    showing = shown(book.next("ann"))
    first = book.rate(showing.id, "tie")
    assert book.rate(showing.id, "tie") == first
    assert len(Ledger.of(workspace).events("rating.given")) == 1


def test_preference_is_about_the_answer_not_about_the_side(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=40)
    for _ in range(40):
        vote(book, "ann", "first")
    assert {vote_of(r) for r in book.ratings()} == {"first"}
    assert {r.choice for r in book.ratings()} == {"left", "right"}


def test_sides_are_drawn_evenly(workspace: Workspace) -> None:
    """Outside 70..130 of 200 a fair coin falls once in 45,000 runs (exact binomial, two-sided)."""
    from scipy.stats import binom

    book = make_book(workspace, n_items=200)
    for _ in range(200):
        vote(book, "ann", "tie")
    lefts = [r.left for r in book.ratings()]
    assert 2 * binom.cdf(69, 200, 0.5) < 1 / 45_000
    assert 70 <= sum(lefts) <= 130
    runs = 1 + sum(a != b for a, b in pairwise(lefts))
    assert 65 <= runs <= 136  # neither alternating nor in blocks


def test_closed_campaign_takes_no_rating_but_knows_what_was_saved(workspace: Workspace) -> None:
    book = make_book(workspace)
    saved, late = shown(book.next("ann")), shown(book.next("ben"))
    rating = book.rate(saved.id, "left")
    for _ in range(2):
        close_campaign(Ledger.of(workspace), book.campaign)
    assert len(Ledger.of(workspace).events("campaign.closed")) == 1
    assert book.settled()
    for refused in (
        lambda: book.rate(late.id, "left"),
        lambda: book.rate(saved.id, "right"),
        lambda: book.next("ann"),
    ):
        with pytest.raises(BadRequest, match="campaign docs: is closed"):
            refused()
    assert book.rate(saved.id, "left") == rating
    assert book.ratings() == [rating]


def change_for_ever(book: RatingBook, showing: Showing, started: threading.Event) -> None:
    """Give and take back an answer until the campaign is closed."""
    with suppress(BadRequest):
        while True:
            book.rate(showing.id, "left")
            book.rate(showing.id, "right")
            started.set()


def test_closing_while_people_rate_leaves_no_rating_behind_the_closing(workspace: Workspace) -> None:
    book = make_book(workspace)
    started = threading.Event()

    raters = []
    for name in ("ann", "ben", "cid"):
        mine = book_of(workspace, book.campaign)
        raters.append(threading.Thread(target=change_for_ever, args=(mine, shown(mine.next(name)), started)))
    for thread in raters:
        thread.start()
    assert started.wait(60)
    close_campaign(Ledger.of(workspace), book.campaign)
    for thread in raters:
        thread.join(60)
    kinds = [e.kind for e in Ledger.of(workspace).events("rating.given", "campaign.closed")]
    assert kinds[-1] == "campaign.closed"
    assert len(kinds) - 1 == len(book.ratings()) > 0


def test_many_raters_at_once_number_their_ratings_without_gap_or_double(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=40)

    def rate(rater: str) -> int:
        mine, n = book_of(workspace, book.campaign), 0
        while (showing := mine.next(rater)) is not None:
            mine.rate(showing.id, "left")
            n += 1
        return n

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(rate, ("ann", "ben", "cid", "dan"))) == 40
    rows = book.ratings()
    assert [r.number for r in rows] == list(range(1, 41))
    assert len({r.item for r in rows}) == 40
    assert verify_ratings(Store.of(workspace), Ledger.of(workspace)) == 40


def test_verifying_while_people_rate_finds_no_fault(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=60)
    done = threading.Event()

    def rate() -> None:
        mine = book_of(workspace, book.campaign)
        for _ in range(60):
            showing = shown(mine.next("ann"))
            mine.rate(showing.id, "left")
            mine.rate(showing.id, "right")
        done.set()

    thread = threading.Thread(target=rate)
    thread.start()
    store, ledger, n_looks = Store.of(workspace), Ledger.of(workspace), 0
    while not done.is_set():
        verify_ratings(store, ledger)
        n_looks += 1
    thread.join()
    assert (n_looks > 0, verify_ratings(store, ledger)) == (True, 120)


def test_rating_is_on_disk_when_it_returns(workspace: Workspace) -> None:
    """The process ends hard right after `rate` returned."""
    book = make_book(workspace)
    code = """
import os, sys
from llmops.ledger import Ledger
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import find_campaign
from llmops.settings import find_workspace
from llmops.store import Store
workspace = find_workspace()
store, ledger = Store.of(workspace), Ledger.of(workspace)
book = RatingBook(store, ledger, find_campaign(store, ledger, "docs"))
book.rate(book.next("ann").id, "left")
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=workspace.root, check=False, timeout=120)
    assert done.returncode == 9
    assert [(r.number, r.rater, r.choice) for r in book.ratings()] == [(1, "ann", "left")]
    assert verify_ratings(Store.of(workspace), Ledger.of(workspace)) == 1


def test_rating_that_the_database_does_not_take_leaves_neither_row_nor_event(workspace: Workspace) -> None:
    book = make_book(workspace)
    first = shown(book.next("ann"))
    book.rate(first.id, "left")
    engine = Ledger.of(workspace).engine
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    with book._ledger.engine.connect() as connection:  # the limit holds for this connection, which is pooled
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def fill() -> None:
        for _ in range(500):
            book.rate(first.id, "right")
            book.rate(first.id, "left")

    with pytest.raises(StoreError, match="free space"):
        fill()
    rows = len(book.ratings())
    assert rows == len(Ledger.of(workspace).events("rating.given")) > 1
    assert verify_ratings(Store.of(workspace), Ledger.of(workspace)) == rows


def test_database_itself_refuses_a_second_live_rating_of_a_rater(workspace: Workspace) -> None:
    book = make_book(workspace)
    vote(book, "ann", "first")
    row = dict(row_of(book.ratings()[0]), number=2, digest="f" * 64, live=True)
    with pytest.raises(IntegrityError), writing(Ledger.of(workspace).engine) as connection:
        connection.execute(insert(ratings).values(**row))


@pytest.mark.parametrize("name", ["", "  ", "a" * 129, "a\nb", "\x00", "\u202eann"])
def test_name_that_is_none_is_refused(workspace: Workspace, name: str) -> None:
    with pytest.raises(BadRequest, match="1 to 128 printable characters"):
        make_book(workspace).next(name)


def test_one_person_is_one_rater_however_the_name_is_typed(workspace: Workspace) -> None:
    book = make_book(workspace)
    showing = shown(book.next("René"))
    assert book.next(" RENE\u0301 ") == showing
    assert book.shown(showing.id, "Rene\u0301") == showing
    book.rate(showing.id, "tie")
    assert [r.rater for r in book.ratings()] == ["rené"]
    assert book.standing(" Rene\u0301").n_mine == 1


def test_showing_of_another_campaign_or_rater_is_refused(workspace: Workspace) -> None:
    book = make_book(workspace)
    foreign = shown(book_of(workspace, make_campaign(workspace, [item(9)], name="other")).next("ann"))
    with pytest.raises(BadRequest, match="is not of this campaign"):
        book.rate(foreign.id, "left")
    with pytest.raises(BadRequest, match="is not of this campaign and rater"):
        book.shown(shown(book.next("ann")).id, "ben")
    with pytest.raises(BadRequest, match="'first' is not an answer; give one of left, right, tie"):
        book.rate(foreign.id, "first")


def test_one_item_twice_is_no_campaign(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="twice"):
        put_items(Store.of(workspace), [item(1), item(1)])
