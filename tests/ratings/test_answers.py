"""What raters may say beside a choice, what is kept of it, and what a second click or a change of mind does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import Connection, delete, select, update

from llmops.db import writing
from llmops.errors import BadRequest, InvalidEvidence
from llmops.ledger import Ledger
from llmops.ratings.added import Owned, add_items, forget_owner, typed_item
from llmops.ratings.book import RatingBook, Showing
from llmops.ratings.check import verify_ratings
from llmops.ratings.rows import Answer
from llmops.records import Campaign, CampaignKind, Item, Message, Pins, Rating
from llmops.schema import digest_of, load_record
from llmops.settings import Workspace
from llmops.store import Store
from llmops.tables import item_texts, rating_texts, ratings
from tests import in_process
from tests.ratings.campaign import book_of, item, make_book, make_campaign, vote


def shown(showing: Showing | None) -> Showing:
    assert showing is not None
    return showing


def check(workspace: Workspace) -> int:
    return verify_ratings(Store.of(workspace), Ledger.of(workspace))


def single_book(workspace: Workspace, kind: CampaignKind, n: int = 2) -> RatingBook:
    items = [replace(item(i), answers=(f"first {i}",)) for i in range(n)]
    return book_of(workspace, make_campaign(workspace, items, kind=kind))


def test_old_ratings_and_campaigns_keep_their_digests(workspace: Workspace) -> None:
    old = {
        "number": 1, "campaign": "c" * 64, "item": "i" * 64, "rater": "ann", "showing": "s", "left": 0,
        "choice": "tie", "at": "2026-01-01T00:00:00.000Z", "supersedes": None,
    }  # fmt: skip
    assert Rating(**old).digest == digest_of(old)  # type: ignore[arg-type]
    campaign = make_campaign(workspace, [item(0)])
    told = campaign.to_dict()
    assert not set(told) & {
        "kind",
        "origin",
        "rubric",
        "plan",
        "n_gold",
        "n_repeats",
        "gold_every",
        "licence",
    }
    assert load_record(Campaign, told) == campaign
    rate = replace(campaign, kind="rate", gold_every=4)
    assert load_record(Campaign, rate.to_dict()) == rate
    assert rate.digest() != campaign.digest()


def test_everything_a_rater_says_is_kept_and_only_digests_are_in_the_chain(workspace: Workspace) -> None:
    book = single_book(workspace, "edit")
    showing = shown(book.next("ann"))
    assert showing.texts == (showing.item.answers[0],)
    secret = "call me at 555-0100"
    said = Answer("edited", tags=("wrong",), note=secret, edit="a better answer", dwell_ms=1234)
    rating = book.rate(showing.id, said)
    (row,) = book.ratings()
    assert (row, row.tags, row.dwell_ms) == (rating, ("wrong",), 1234)
    assert book.texts() == {(rating.digest, "note"): secret, (rating.digest, "edit"): "a better answer"}
    pins = Pins.of(book.campaign, showing.item)
    assert (pins.systems, pins.prompt_contract) == (("a" * 64,), "e" * 64)
    assert row.pins == pins.digest
    with Ledger.of(workspace).engine.connect() as connection:
        row_text = str(connection.execute(select(ratings)).mappings().one())
    ledger = json.dumps([e.body for e in Ledger.of(workspace).events()])
    assert secret not in ledger + row_text
    assert check(workspace) == 1
    again = in_process.llmops(workspace.root, "feedback", "ratings", "docs", "--json")
    told = json.loads(again.out)
    assert (told["pins"]["systems"], told["tags"]) == (["a" * 64], ["wrong"])


def test_scores_come_back_by_question(workspace: Workspace) -> None:
    book = single_book(workspace, "rate")
    book.rate(shown(book.next("ann")).id, Answer("rated", scores={"correct": 4, "clear": 2}))
    (row,) = book.ratings()
    assert row.scores == {"correct": 4, "clear": 2}
    assert check(workspace) == 1


WRONG: dict[str, tuple[CampaignKind, Answer, str]] = {
    "a choice to rate": ("rate", Answer("left"), "'left' is not an answer; give one of rated, skip, undone"),
    "no scores": ("rate", Answer("rated"), "scores belong to the answer `rated`, at least one"),
    "scores to compare": ("compare", Answer("left", scores={"a": 1}), "scores belong to the answer `rated`"),
    "half a point": ("rate", Answer("rated", scores={"a": 1.5}), "score a: 1.5 is no whole number"),  # type: ignore[dict-item]
    "empty edit": ("edit", Answer("edited", edit=" \n"), "may not be empty"),
    "long note": ("compare", Answer("tie", note="x" * 100_001), "has over 100,000 characters"),
    "many tags": ("compare", Answer("tie", tags=tuple(map(str, range(33)))), "more than 32 tags"),
    "empty tag": ("compare", Answer("tie", tags=("",)), "a tag, question or key is empty"),
    "long key": ("compare", Answer("tie", key="k" * 65), "over 64 characters"),
    "no time": ("compare", Answer("tie", dwell_ms=-1), "dwell_ms -1 is no time"),
    "nothing to undo": ("compare", Answer("undone"), "nothing to take back"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_answer_is_refused_and_leaves_nothing(workspace: Workspace, what: str) -> None:
    kind, answer, said = WRONG[what]
    book = make_book(workspace) if kind == "compare" else single_book(workspace, kind)
    showing = shown(book.next("ann"))
    with pytest.raises(BadRequest, match=said.replace("(", r"\(")):
        book.rate(showing.id, answer)
    assert book.ratings() == []


def test_one_click_is_one_rating_whatever_came_in_between(workspace: Workspace) -> None:
    """The retry of a click that was answered long ago must not undo what the rater said since."""
    book = make_book(workspace)
    showing = shown(book.next("ann"))
    first = book.rate(showing.id, Answer("left", key="click-1"))
    second = book.rate(showing.id, Answer("right", key="click-2"))
    assert book.rate(showing.id, Answer("left", key="click-1")) == first
    assert [r.number for r in book.ratings()] == [1, 2]
    assert book.evidence()[-1] == second
    with pytest.raises(BadRequest, match="this key was given with another answer before"):
        book.rate(showing.id, Answer("tie", key="click-1"))
    # Another showing has keys of its own.
    other = shown(book.next("ann"))
    assert book.rate(other.id, Answer("left", key="click-1")).number == 3


def test_the_same_answer_with_another_note_is_another_rating(workspace: Workspace) -> None:
    book = make_book(workspace)
    showing = shown(book.next("ann"))
    one = book.rate(showing.id, Answer("left", note="short"))
    assert book.rate(showing.id, Answer("left", note="short")) == one
    two = book.rate(showing.id, Answer("left", note="longer"))
    assert two.supersedes == one.digest
    assert check(workspace) == 2


def test_answer_that_is_taken_back_counts_as_never_given(workspace: Workspace) -> None:
    book = make_book(workspace, n_items=1)
    showing = shown(book.next("ann"))
    given = book.rate(showing.id, "left")
    assert book.settled()
    undone = book.rate(showing.id, "undone")
    assert (undone.supersedes, book.settled(), book.standing("ann").n_mine) == (given.digest, False, 0)
    assert book.next("ann") == showing  # the same item on the same sides
    book.rate(showing.id, "right")
    assert [r.choice for r in book.ratings()] == ["left", "undone", "right"]
    assert check(workspace) == 3


def test_gold_and_repeats_are_asked_and_never_counted(workspace: Workspace) -> None:
    items = [item(i) for i in range(12)]
    gold = [replace(item(90 + i), known="first") for i in range(3)]
    repeat = replace(items[0], repeat_of=items[0].digest)
    campaign = make_campaign(
        workspace, [*items, *gold, repeat], n_gold=3, n_repeats=1, gold_every=4, votes_per_item=1
    )
    book = book_of(workspace, campaign)
    asked: list[Showing] = []
    while (showing := book.next("ann")) is not None:
        asked.append(showing)
        assert book.next("ann") == showing
        book.rate(showing.id, "left")
    order = [s.item for s in asked]
    places = [i for i, one in enumerate(order) if one.known is not None]
    assert [place // 4 for place in places] == list(range(len(places)))
    assert len(places) == 3
    first, again = (next(s for s in asked if s.item == one) for one in (items[0], repeat))
    assert again.left == 1 - first.left
    assert order.index(repeat) - order.index(items[0]) > 5
    assert [i.digest for i in book.items()] == [i.digest for i in items]
    assert {r.item for r in book.evidence()} == {i.digest for i in items}
    assert len(book.ratings()) == 16
    standing = book.standing("ann")
    assert (standing.n_items, standing.n_full, standing.n_mine, book.settled()) == (12, 12, 12, True)
    assert check(workspace) == 16


def test_items_of_the_overlap_get_more_votes(workspace: Workspace) -> None:
    items = [replace(item(i), votes=2) if i < 2 else item(i) for i in range(5)]
    book = book_of(workspace, make_campaign(workspace, items))
    for rater in ("ann", "ben", "cid"):
        while book.next(rater) is not None:
            vote(book, rater, "tie")
    counts = {i: sum(r.item == one.digest for r in book.ratings()) for i, one in enumerate(items)}
    assert counts == {0: 2, 1: 2, 2: 1, 3: 1, 4: 1}


# ---------------------------------------------------------------- items whose texts lie in the database


def typed_campaign(workspace: Workspace) -> RatingBook:
    campaign = make_campaign(workspace, [], origin="typed")
    return book_of(workspace, campaign)


def test_typed_prompt_is_an_item_for_its_rater_at_once_and_for_others_after(workspace: Workspace) -> None:
    book = typed_campaign(workspace)
    assert book.next("ann") is None
    new = typed_item("what is it?", ("one", "two"), ("a" * 64, "b" * 64))
    showing = shown(book.add([Owned(new, "ann")], "ann"))
    assert (showing.item.messages[0].content, set(showing.texts)) == ("what is it?", {"one", "two"})
    assert book_of(workspace, book.campaign).next("ann") == showing
    book.rate(showing.id, "left")
    assert not book.settled()
    assert check(workspace) == 1
    with pytest.raises(BadRequest, match="its items are frozen"):
        make_book(workspace).add([Owned(new)], "ann")
    with pytest.raises(BadRequest, match="prompt: is empty"):
        typed_item(" ", ("a", "b"), ("a" * 64, "b" * 64))


def test_texts_go_with_their_owner_and_their_digests_stay(workspace: Workspace) -> None:
    captured = [
        Owned(
            Item(
                (Message("user", f"secret {i}"),), ("one", "two"), "g", f"r{i}", responses=(f"r{i}", f"s{i}")
            ),
            f"user{i}",
        )
        for i in range(2)
    ]
    campaign = make_campaign(workspace, [o.item for o in captured], origin="captures")
    add_items(Ledger.of(workspace), campaign, captured)
    assert add_items(Ledger.of(workspace), campaign, captured) == []
    book = book_of(workspace, campaign)
    showing = shown(book.next("ann"))
    book.rate(showing.id, "left")
    kept = captured[0] if showing.item == captured[1].item else captured[1]
    owner = next(o.owner for o in captured if o.item == showing.item)
    assert forget_owner(Ledger.of(workspace), str(owner)) == 1
    assert forget_owner(Ledger.of(workspace), str(owner)) == 0
    assert check(workspace) == 1
    later = book_of(workspace, campaign)
    assert (later.items(), later.deleted()) == ([kept.item], [showing.item.digest])
    with pytest.raises(BadRequest, match="the texts of this item were deleted meanwhile"):
        book.rate(showing.id, "right")
    with Ledger.of(workspace).engine.connect() as connection:
        assert "secret" not in json.dumps([e.body for e in Ledger.of(workspace).events()])
        assert len(connection.execute(select(item_texts)).all()) == 1


# ---------------------------------------------------------------- tampering


def edited_note(connection: Connection) -> None:
    connection.execute(update(rating_texts).values(text="something else"))


def lost_note(connection: Connection) -> None:
    connection.execute(delete(rating_texts))


def other_scores(connection: Connection) -> None:
    connection.execute(update(ratings).values(tags='["fine"]'))


def other_item(connection: Connection) -> None:
    body = connection.execute(select(item_texts.c.body)).scalar_one()
    connection.execute(update(item_texts).values(body=body.replace("is it", "was it")))


def lost_item(connection: Connection) -> None:
    connection.execute(delete(item_texts))


TAMPERINGS: dict[str, tuple[Callable[[Connection], None], str]] = {
    "note": (edited_note, "the note of #1 was changed"),
    "note gone": (lost_note, "the note of #1 is gone"),
    "tags": (other_scores, "#1 was changed after it was given"),
    "typed prompt": (other_item, "was changed after it was captured"),
    "typed prompt gone": (lost_item, "is gone; restore the database"),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_changed_and_lost_texts_are_found(workspace: Workspace, what: str) -> None:
    book = typed_campaign(workspace)
    new = typed_item("what is it?", ("one", "two"), ("a" * 64, "b" * 64))
    showing = shown(book.add([Owned(new, "ann")], "ann"))
    book.rate(showing.id, Answer("left", note="because"))
    assert check(workspace) == 1
    change, said = TAMPERINGS[what]
    with writing(Ledger.of(workspace).engine) as connection:
        change(connection)
    with pytest.raises(InvalidEvidence, match=said):
        check(workspace)


def test_rating_about_other_systems_is_found(workspace: Workspace) -> None:
    """The items' file is whole, but its item says other systems than the rating was pinned to."""
    book = typed_campaign(workspace)
    new = typed_item("what is it?", ("one", "two"), ("a" * 64, "b" * 64))
    book.rate(shown(book.add([Owned(new)], "ann")).id, "left")
    with writing(Ledger.of(workspace).engine) as connection:
        body = connection.execute(select(item_texts.c.body)).scalar_one()
        connection.execute(update(item_texts).values(body=body.replace("b" * 64, "c" * 64)))
    with pytest.raises(InvalidEvidence, match="#1 was given about other systems, answers or rubric"):
        check(workspace)
