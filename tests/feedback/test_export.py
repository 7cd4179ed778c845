"""Votes become preferences: every item is a pair or a listed reason, and what comes back is what people said."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from llmops.data import build_snapshot, find_snapshot
from llmops.db import writing
from llmops.errors import BadRequest, InvalidEvidence
from llmops.feedback.export import export_preferences
from llmops.ratings.book import RatingBook
from llmops.ratings.outcomes import RULE
from llmops.ratings.preferences import find_preferences, load_pairs, preference_line, preference_of_line
from llmops.records import Campaign, Item, Message, Preference, PreferenceSnapshot
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from llmops.tables import ratings
from tests.evals.conftest import write
from tests.loop import Loop
from tests.ratings.campaign import book_of, item, make_campaign, vote


def build_data(workspace: Workspace, *questions: int, name: str = "docs") -> str:
    """A dataset whose gate pool holds just these questions; returns the snapshot's digest."""
    rows = [{"prompt": f"question {i}", "completion": "answer", "group": f"g{i}"} for i in questions]
    (workspace.root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": name, "licence": "CC0-1.0", "origin": "counted",
        "source": {"kind": "files", "paths": [f"{name}.jsonl"]},
        "pools": {"train": 0, "rate": 0, "gate": 1},
    }  # fmt: skip
    registry = Registry.of(workspace)
    return build_snapshot(
        write(workspace.root / f"{name}.yaml", config), registry.store, registry.ledger
    ).digest()


def open_train(workspace: Workspace, n_items: int, votes_per_item: int = 1) -> RatingBook:
    dataset = build_data(workspace, 1000)
    items = [item(i) for i in range(n_items)]
    return book_of(workspace, make_campaign(workspace, items, votes_per_item=votes_per_item, dataset=dataset))


def export(book: RatingBook, workspace: Workspace) -> PreferenceSnapshot:
    return export_preferences(Registry.of(workspace), book.campaign)


def pairs_of(workspace: Workspace, snapshot: PreferenceSnapshot) -> list[Preference]:
    return load_pairs(Registry.of(workspace).store, snapshot)


def dropped_of(workspace: Workspace, snapshot: PreferenceSnapshot) -> list[dict[str, str]]:
    path = Registry.of(workspace).store.verify("preferences", snapshot.artifact) / "dropped.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_every_item_is_a_pair_or_is_dropped_with_its_reason(workspace: Workspace) -> None:
    book = open_train(workspace, 8, votes_per_item=2)
    order = {item(i).digest: i for i in range(8)}
    said = {
        "ann": ("first", "second", "tie", "both_bad", "first", "skip", "first"),
        "ben": ("first", "second", "tie", "both_bad", "second", "skip", "skip", "skip"),
    }
    for rater, answers in said.items():
        for _ in answers:
            showing = book.next(rater)
            assert showing is not None
            says = answers[order[showing.item.digest]]
            sides = {"first": ("left", "right")[showing.left], "second": ("right", "left")[showing.left]}
            book.rate(showing.id, sides.get(says, says))
    snapshot = export(book, workspace)
    assert snapshot.n_pairs == 3
    assert snapshot.n_dropped == {"both bad": 1, "skipped by all": 2, "split": 1, "tie": 1}
    assert snapshot.n_pairs + sum(snapshot.n_dropped.values()) == 8
    assert (snapshot.rule, snapshot.licence, snapshot.campaign) == (RULE, "CC0-1.0", book.campaign.digest())
    digests: dict[str, list[str]] = {}
    for row in book.ratings():
        if row.choice != "skip":
            digests.setdefault(row.item, []).append(row.digest)
    expected = [(0, 0, 2), (1, 1, 2), (6, 0, 1)]  # item, which answer, votes behind it
    found = pairs_of(workspace, snapshot)
    for pair, (i, which, n_votes) in zip(found, expected, strict=True):
        made = item(i)
        assert pair == Preference(
            made.messages, made.answers[which], made.answers[1 - which], made.group, made.source,
            made.digest, tuple(digests[made.digest]),
        )  # fmt: skip
        assert len(pair.ratings) == n_votes
    assert [(d["item"], d["source"], d["reason"]) for d in dropped_of(workspace, snapshot)] == [
        (item(i).digest, item(i).source, reason)
        for i, reason in (
            (2, "tie"),
            (3, "both bad"),
            (4, "split"),
            (5, "skipped by all"),
            (7, "skipped by all"),
        )
    ]


def test_a_hundred_votes_on_random_sides_come_back_as_given(workspace: Workspace) -> None:
    book = open_train(workspace, 100)
    says = [("first", "second")[i * 7 % 3 == 0] for i in range(100)]
    for each in says:
        vote(book, "ann", each)
    pairs = pairs_of(workspace, export(book, workspace))
    assert [pair.chosen.split()[0] for pair in pairs] == says
    assert all({p.chosen, p.rejected} == set(item(i).answers) for i, p in enumerate(pairs))
    assert {r.left for r in book.ratings()} == {0, 1}


def test_changed_mind_is_what_counts(workspace: Workspace) -> None:
    book = open_train(workspace, 1)
    showing = book.next("ann")
    assert showing is not None
    for choice in ("left", "both_bad", "right"):
        book.rate(showing.id, choice)
    (pair,) = pairs_of(workspace, export(book, workspace))
    assert pair.chosen == item(0).answers[1 - showing.left]
    assert pair.ratings == (book.ratings()[-1].digest,)


def test_the_same_votes_are_the_same_snapshot_and_more_votes_another(workspace: Workspace) -> None:
    book = open_train(workspace, 3)
    registry = Registry.of(workspace)
    vote(book, "ann", "first")
    first = export(book, workspace)
    assert export(book, workspace) == first
    vote(book, "ann", "second")
    second = export(book, workspace)
    assert (second.n_pairs, second.digest() != first.digest()) == (2, True)
    events = registry.ledger.events("preferences.snapshotted")
    assert [e.body for e in events] == [
        {"name": "docs", "preferences": s.digest(), "artifact": s.artifact, "campaign": book.campaign.digest()}
        for s in (first, second)
    ]  # fmt: skip
    assert find_preferences(registry.store, registry.ledger, "docs") == second
    assert pairs_of(workspace, first) == pairs_of(workspace, second)[:1]


def test_prompt_that_entered_a_gate_pool_meanwhile_never_becomes_a_pair(workspace: Workspace) -> None:
    book = open_train(workspace, 4)
    for _ in range(4):
        vote(book, "ann", "first")
    before = export(book, workspace)
    build_data(workspace, 1, 3, name="other")
    build_data(workspace, 7, name="other")  # once in a gate pool is enough
    after = export(book, workspace)
    assert (before.n_pairs, after.n_pairs, after.n_dropped) == (4, 2, {"gate prompt": 2})
    assert [p.item for p in pairs_of(workspace, after)] == [item(0).digest, item(2).digest]


def test_votes_for_a_gate_are_never_exported(workspace: Workspace) -> None:
    campaign = make_campaign(workspace, [item(0)], purpose="gate", dataset=build_data(workspace, 5))
    book = book_of(workspace, campaign)
    vote(book, "ann", "first")
    with pytest.raises(BadRequest, match="is for a gate, and what a gate decides on is never trained on"):
        export(book, workspace)
    assert Registry.of(workspace).ledger.events("preferences.snapshotted") == []


def test_nothing_to_learn_from_says_why(workspace: Workspace) -> None:
    book = open_train(workspace, 3)
    vote(book, "ann", "tie")
    with pytest.raises(BadRequest, match=r"none of 3 items is a pair yet \(1 tie, 2 unrated\); rate on with"):
        export(book, workspace)
    assert not Registry.of(workspace).store.digests("preferences")


def test_text_of_any_kind_comes_back_unchanged(workspace: Workspace) -> None:
    text = 'a "quoted"\r\n\tline   \x85 é e\u0301 \U0001f600 {"json": [1]} \\n \x00 '
    odd = Item((Message("system", text), Message("user", text)), (text, text + "!"), text, "rows.jsonl:1")
    campaign = make_campaign(workspace, [odd, item(1)], dataset=build_data(workspace, 5))
    book = book_of(workspace, campaign)
    assert book.items() == [odd, item(1)]
    vote(book, "ann", "second")
    (pair,) = pairs_of(workspace, export(book, workspace))
    assert (pair.messages, pair.chosen, pair.rejected, pair.group) == (odd.messages, text + "!", text, text)
    assert preference_of_line(preference_line(pair)) == pair


def change_pairs(workspace: Workspace, snapshot: PreferenceSnapshot) -> None:
    path = Registry.of(workspace).store.path("preferences", snapshot.artifact) / "pairs.jsonl"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"first 0", b"First 0"))


def change_rating(workspace: Workspace, snapshot: PreferenceSnapshot) -> None:
    with writing(Registry.of(workspace).ledger.engine) as connection:
        connection.execute(update(ratings).values(choice="tie"))


@pytest.mark.parametrize(
    ("change", "said"),
    [(change_pairs, r"pairs\.jsonl was changed"), (change_rating, "#1 was changed after it was given")],
)
def test_altered_votes_or_pairs_are_not_used(
    workspace: Workspace, change: Callable[[Workspace, PreferenceSnapshot], None], said: str
) -> None:
    book = open_train(workspace, 1)
    vote(book, "ann", "first")
    snapshot = export(book, workspace)
    change(workspace, snapshot)
    with pytest.raises(InvalidEvidence, match=said):
        pairs_of(workspace, export(book, workspace))


def test_snapshot_that_says_another_number_of_pairs_is_refused(workspace: Workspace) -> None:
    book = open_train(workspace, 1)
    vote(book, "ann", "first")
    with pytest.raises(InvalidEvidence, match="holds 1 pairs, its record says 2"):
        pairs_of(workspace, replace(export(book, workspace), n_pairs=2))


def test_preferences_that_were_never_exported_say_how(workspace: Workspace) -> None:
    registry = Registry.of(workspace)
    with pytest.raises(BadRequest, match="preferences docs: no snapshot; run `llmops feedback export docs`"):
        find_preferences(registry.store, registry.ledger, "docs")


# ---------------------------------------------------------------- by the command line


@pytest.fixture
def loop(workspace: Workspace, tmp_path: Path) -> Loop:
    return Loop(workspace.root, tmp_path)


def listed(loop: Loop, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in loop.llmops("feedback", "ratings", name, "--json").out.splitlines()]


def test_command_exports_what_the_commands_show(workspace: Workspace, loop: Loop) -> None:
    book = open_train(workspace, 4)
    for rater, says in (("ann", "first"), ("ben", "second"), ("ann", "tie")):
        vote(book, rater, says)
    loop.llmops("feedback", "export", "docs", "--output", "pairs.jsonl")
    registry = Registry.of(workspace)
    snapshot = find_preferences(registry.store, registry.ledger, "docs")
    lines = (workspace.root / "pairs.jsonl").read_bytes().splitlines()
    assert [preference_of_line(line) for line in lines] == pairs_of(workspace, snapshot)
    rows = {row["digest"]: row for row in listed(loop, "docs")}
    for line in lines:
        pair = json.loads(line)
        (row,) = (rows[digest] for digest in pair["ratings"])
        answers = next(i for i in book.items() if i.digest == row["item"]).answers
        assert pair["chosen"] == answers[("first", "second").index(row["vote"])]
        assert pair["chosen"] == answers[row["left"] if row["choice"] == "left" else 1 - row["left"]]
    shown = json.loads(loop.llmops("feedback", "show", "docs", "--json").out)
    assert shown["standing"] == {
        "state": "open", "n_full": 3, "n_votes": 3, "n_raters": 2,
        "outcomes": {"first": 1, "second": 1, "tie": 1},
    }  # fmt: skip
    said = loop.llmops("feedback", "export", "docs").out
    assert ("pairs    2 of 4 items" in said, "dropped  tie 1, unrated 1" in said) == (True, True)
    assert find_snapshot(registry.store, registry.ledger, "docs").digest() == snapshot.dataset
    bad = loop.llmops("feedback", "export", "docs", "--output", "no/where.jsonl", check=False)
    assert (bad.code, "no/where.jsonl: cannot be written" in bad.err) == (2, True)


def test_nobody_sees_how_a_gates_votes_go_before_all_are_in(workspace: Workspace, loop: Loop) -> None:
    book = gate_book(workspace)
    vote(book, "ann", "first")
    for command in (("show", "docs"), ("show", "docs", "--json"), ("list",)):
        out = loop.llmops("feedback", *command).out
        assert not any(word in out for word in ("outcomes", "first", "second")), out
    refused = loop.llmops("feedback", "ratings", "docs", check=False)
    assert (refused.code, refused.out) == (2, "")
    assert "1 of 3 items are rated, and nobody looks before all are" in refused.err
    assert "closed   docs@" in loop.llmops("feedback", "close", "docs").out
    assert [row["vote"] for row in listed(loop, "docs")] == ["first"]
    shown = loop.llmops("feedback", "show", "docs").out
    assert "standing closed; 1 of 3 items have 1 vote(s)" in shown
    assert "outcomes first 1" in shown


def test_complete_gate_campaign_shows_its_votes(workspace: Workspace, loop: Loop) -> None:
    book = gate_book(workspace)
    for says in ("first", "tie", "second"):
        vote(book, "ann", says)
    assert [row["vote"] for row in listed(loop, "docs")] == ["first", "tie", "second"]
    assert "complete" in loop.llmops("feedback", "list").out


def test_damaged_campaign_hides_no_other_in_the_list(workspace: Workspace, loop: Loop) -> None:
    damaged = make_campaign(workspace, [item(1)], name="damaged")
    make_campaign(workspace, [item(2)], name="whole")
    path = Registry.of(workspace).store.path("items", damaged.items) / "items.jsonl"
    path.chmod(0o644)
    path.write_bytes(b"")
    lines = [line.split() for line in loop.llmops("feedback", "list").out.splitlines()[1:]]
    assert [(line[0], line[-2]) for line in lines] == [("damaged", "damaged"), ("whole", "open")]
    shown = loop.llmops("feedback", "show", "damaged", check=False)
    assert (shown.code, "items.jsonl was changed" in shown.err) == (4, True)


@pytest.mark.walk
def test_page_is_served_for_the_newest_open_campaign_until_it_is_told_to_stop(
    workspace: Workspace, loop: Loop
) -> None:
    make_campaign(workspace, [item(0)], name="older")
    make_campaign(workspace, [item(1)], name="newer")
    loop.llmops("feedback", "close", "older")
    command = [sys.executable, "-m", "llmops.cli", "feedback", "ui", "--port", "0"]
    log = loop.root / "page.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=loop.root, env=loop.environment(), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as page,
    ):
        try:
            assert page.stdout is not None
            said = page.stdout.readline().split()
            assert said[:1] == ["rating"], log.read_text()
            assert said[1].startswith("http://127.0.0.1:")
            with urllib.request.urlopen(said[1], timeout=60) as answer:
                assert "Rating: newer" in answer.read().decode()
        finally:
            page.terminate()
            code = page.wait(60)
    assert code == 0, log.read_text()
    refused = loop.llmops("feedback", "ui", "older", "--port", "0", check=False)
    assert (refused.code, "campaign older: is closed" in refused.err) == (2, True)


def gate_book(workspace: Workspace) -> RatingBook:
    campaign: Campaign = make_campaign(workspace, [item(i) for i in range(3)], purpose="gate")
    return book_of(workspace, campaign)
