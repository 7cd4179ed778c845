"""What is quick is right: arrays choose what the rule chooses, and kept-up answers are those that a full read finds."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from llmops.db import writing
from llmops.ledger import Ledger
from llmops.ratings.book import RatingBook
from llmops.ratings.moment import answers_in, lease_start
from llmops.ratings.queue import Asked, Need, Turnout, next_item
from llmops.ratings.ranks import Ranks
from llmops.ratings.rows import Answer
from llmops.ratings.withdrawn import withdraw
from llmops.records import VotePlan
from llmops.settings import Workspace
from llmops.tables import showings
from tests.ratings.campaign import book_of, item, make_campaign

RATERS = ("ann", "ben", "cid")
_number = itertools.count()
PLANS = st.builds(
    VotePlan,
    looks=st.sampled_from([(), (2, 4), (1, 3, 5)]),
    min_items=st.integers(1, 4),
    min_raters=st.integers(1, 4),
    agreement_items=st.none() | st.integers(1, 4),
    kind=st.just("superior"),
    threshold=st.just(0.0),
    level=st.just(0.95),
    power=st.just(0.8),
)
ITEMS = st.lists(
    st.tuples(st.sampled_from("gh"), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2), st.booleans()),
    max_size=9,
)


@given(ITEMS, st.none() | PLANS, st.builds(Turnout, st.integers(0, 4), st.booleans()))
@settings(max_examples=300, deadline=None)
def test_arrays_choose_the_item_that_the_rule_chooses(
    items: list[tuple[str, int, int, int, bool]], plan: VotePlan | None, turnout: Turnout
) -> None:
    """Each item: its group, votes needed, votes there, votes on their way, and whether the rater has answered it."""
    needs = [Need(str(i), g, n, votes + way, mine) for i, (g, n, votes, way, mine) in enumerate(items)]
    ranks = Ranks([(str(i), g, n) for i, (g, n, *_) in enumerate(items)])
    ranks.count({str(i): 9 for i in range(len(items))}, map(str, range(len(items))))  # counted anew below
    ranks.count({str(i): votes for i, (_, _, votes, _, _) in enumerate(items)}, map(str, range(len(items))))
    asked = Asked(
        {str(i): way for i, (*_, way, _) in enumerate(items)} | {"gone": 2},
        [*(str(i) for i, (*_, mine) in enumerate(items) if mine), "gone"],
        turnout,
    )
    assert ranks.next_item(plan, asked) == next_item(needs, plan, turnout)


def expected(book: RatingBook, rater: str) -> str | None:
    """The item the rule gives a rater, from every row read anew: what waits for them, or what is best."""
    ledger, digest = book._ledger, book.campaign.digest()
    with ledger.engine.connect() as connection:
        answers, since = answers_in(connection, digest), lease_start()
        shown = connection.execute(
            select(showings).where(showings.c.campaign == digest).order_by(showings.c.at.desc())
        ).all()
    others = {(r.item, r.rater) for r in shown if r.at > since and r.rater != rater} - answers.answered.keys()
    load = answers.votes + Counter(digest for digest, _ in others)
    needed = {i.digest: book.votes_of(i) for i in book.items()}
    done = answers.by(rater)
    for row in shown:
        if (
            row.rater == rater
            and row.item not in done
            and (row.at > since or load[row.item] < needed[row.item])
        ):
            return str(row.item)
    needs = [
        Need(i.digest, i.group, needed[i.digest], load[i.digest], i.digest in done) for i in book.items()
    ]
    return next_item(needs, book.campaign.plan, Turnout(len(answers.raters), rater in answers.raters))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["next", "rate", "rate", "rate", "again", "again", "undo", "expire", "withdraw", "fail"]
        ),
        st.sampled_from(RATERS),
        st.sampled_from(["left", "right", "tie", "both_bad", "skip"]),
        st.booleans(),
    ),
    min_size=12,
    max_size=30,
)


class Play:
    """Raters on two pages of one campaign, each page with what it knows; the rows are the truth."""

    def __init__(self, workspace: Workspace, plan: VotePlan | None, votes: tuple[int, ...]) -> None:
        items = [replace(item(i), votes=n, group=f"g{i % 2}") for i, n in enumerate(votes)]
        purpose: Any = "train" if plan is None else "gate"
        self.number = next(_number)  # who withdrew has withdrawn from all campaigns
        campaign = make_campaign(workspace, items, purpose, name=f"c{self.number}", plan=plan)
        self.ledger = Ledger.of(workspace)
        self.books = [book_of(workspace, campaign) for _ in range(2)]
        self.shown: dict[str, str] = {}
        self.gone: set[str] = set()

    def step(self, what: str, who: str, choice: str, second: bool) -> None:
        book, rater = self.books[second], self.called(who)
        if rater in self.gone or (what != "next" and rater not in self.shown):
            return
        if what == "next":
            best = expected(book, rater)
            showing = book.next(rater)
            assert (showing.item.digest if showing else None) == best
            if showing:
                self.shown[rater] = showing.id
        elif what == "rate":
            self.rate(book, rater, choice)
        elif what == "undo" and book.answered_last(rater) is not None:
            book.rate(book.answered_last(rater).showing, "undone")  # type: ignore[union-attr]
        elif what == "again" and (last := book.answered_last(rater)) is not None:
            book.rate(last.showing, choice)
        elif what == "expire":
            with writing(self.ledger.engine) as connection:
                connection.execute(
                    update(showings)
                    .where(showings.c.id == self.shown[rater])
                    .values(at="2020-01-01T00:00:00.000Z")
                )
        elif what == "withdraw" and any(row.rater == rater for row in book.ratings()):
            withdraw(self.ledger, rater)
            self.gone.add(rater)
        elif what == "fail":
            self.fail(book, rater, choice)

    def called(self, who: str) -> str:
        return f"{who} {self.number}"

    def rate(self, book: RatingBook, rater: str, choice: str) -> None:
        done = book.rate_and_next(self.shown[rater], Answer(choice), rater)
        assert done.refused is None
        with self.ledger.engine.connect() as connection:
            assert done.standing.n_mine == len(answers_in(connection, book.campaign.digest()).by(rater))
        if done.showing:
            self.shown[rater] = done.showing.id
            assert done.showing.item.digest == expected(book, rater)

    def fail(self, book: RatingBook, rater: str, choice: str) -> None:
        """A write that is taken back at its end leaves nothing known that is not there."""

        def cut_off() -> None:
            with book._writing() as connection:
                book._rate(connection, self.shown[rater], Answer(choice))
                raise RuntimeError("power")

        with pytest.raises(RuntimeError, match="power"):
            cut_off()

    def require_equal(self) -> None:
        for book in self.books:
            with self.ledger.engine.connect() as connection:
                answers = answers_in(connection, book.campaign.digest())
            ann = self.called("ann")
            standing = book.standing(ann)
            full = [i for i in book.items() if answers.votes[i.digest] >= book.votes_of(i)]
            assert (standing.n_full, standing.n_mine) == (len(full), len(answers.by(ann)))
            needs, turnout = book.queue()
            assert {n.item: n.load for n in needs} == {
                i.digest: answers.votes[i.digest] for i in book.items()
            }
            assert turnout.n_raters == len(answers.raters)
            for rater in map(self.called, RATERS):
                known = {digest: said.left for digest, said in book._chooser.by(rater).items()}
                assert list(known.items()) == list(answers.by(rater).items()), "in the same order"
                if rater not in self.gone:
                    best, showing = expected(book, rater), book.next(rater)
                    assert (showing.item.digest if showing else None) == best


@given(STEPS, st.none() | PLANS, st.lists(st.integers(1, 2), min_size=1, max_size=5).map(tuple))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_two_pages_that_follow_the_ledger_choose_what_a_full_read_chooses(
    workspace: Workspace,
    steps: list[tuple[str, str, str, bool]],
    plan: VotePlan | None,
    votes: tuple[int, ...],
) -> None:
    play = Play(workspace, plan, votes)
    for step in [("next", "ann", "", False), ("next", "ben", "", True), *steps]:
        play.step(*step)
    play.require_equal()
