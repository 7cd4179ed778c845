"""Every form of export: what each answer becomes, what is dropped and why, and that recipes learn from it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmops.data import find_snapshot, load_pool
from llmops.errors import BadRequest, ConfigError
from llmops.feedback import sift
from llmops.feedback.export import Export, export_preferences, export_rows
from llmops.feedback.forms import RULES
from llmops.ratings.book import RatingBook
from llmops.ratings.origins import origins_of
from llmops.ratings.preferences import load_pairs
from llmops.ratings.rows import Answer
from llmops.ratings.withdrawn import withdraw
from llmops.records import CampaignKind, Item, Message
from llmops.registry.adapters import Registry
from llmops.registry.graph import build_graph
from llmops.settings import Workspace
from llmops.train.frozen import read_judged
from llmops.train.gate import UNCHECKED
from llmops.train.recipe import DatasetSource
from llmops.train.rows import read_source
from tests import in_process
from tests.feedback.test_export import build_data, open_train
from tests.ratings.campaign import book_of, item, make_campaign, vote


def answered(workspace: Workspace, kind: CampaignKind, said: dict[str, list[Answer]], n: int) -> RatingBook:
    """A campaign of one answer an item, answered in the campaign's order by each rater."""
    single = [replace(item(i), answers=(f"first {i}",)) for i in range(n)]
    dataset = build_data(workspace, 1000)
    book = book_of(workspace, make_campaign(workspace, single, kind=kind, votes_per_item=9, dataset=dataset))
    place = {one.digest: i for i, one in enumerate(book.items())}
    for rater, answers in said.items():
        for _ in range(n):
            showing = book.next(rater)
            assert showing is not None
            at = place[showing.item.digest]
            book.rate(showing.id, answers[at] if at < len(answers) else SKIP)
    return book


def lines_of(workspace: Workspace, artifact: str, name: str) -> list[dict[str, Any]]:
    path = Registry.of(workspace).store.verify("dataset", artifact) / name
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def reasons(workspace: Workspace, artifact: str) -> Counter[str]:
    return Counter(row["reason"] for row in lines_of(workspace, artifact, "dropped.jsonl"))


def edit(text: str) -> Answer:
    return Answer("edited", edit=text)


KEPT, SKIP = Answer("kept"), Answer("skip")


def test_corrections_become_rows_that_recipes_learn_from(workspace: Workspace) -> None:
    said = {
        "ann": [edit("ann 0"), KEPT, edit("ann 2"), edit("first 3 "), SKIP],
        "ben": [edit("ben 0"), KEPT, KEPT, edit("first 3"), SKIP],
    }
    book = answered(workspace, "edit", said, 6)
    registry = Registry.of(workspace)
    done = in_process.llmops(
        workspace.root, "feedback", "export", "docs", "--as", "sft", "--output", "rows.jsonl"
    )
    assert done.code == 0, done.err
    assert "rows     2 of 6 items" in done.out
    snapshot = find_snapshot(registry.store, registry.ledger, "docs-sft")
    rows = load_pool(registry.store, snapshot, "train")
    assert [r.messages[-1].content for r in rows] == [
        "ben 0",
        "first 1",
    ]  # the newest correction; the kept answer
    assert reasons(workspace, snapshot.artifact) == {
        "split": 1, "same: the correction is the answer": 1, "skipped by all": 2,
    }  # fmt: skip
    assert snapshot.n_rows["train"] + sum(snapshot.n_dropped.values()) == 6
    assert (snapshot.licence, RULES["edit", "sft"] in snapshot.origin) == ("CC0-1.0", True)
    copied = [json.loads(line) for line in (workspace.root / "rows.jsonl").read_bytes().splitlines()]
    assert [row["messages"][-1]["content"] for row in copied] == ["ben 0", "first 1"]
    listed = [json.loads(x) for x in (workspace.root / "rows.dropped.jsonl").read_bytes().splitlines()]
    assert len(listed) == 4
    source = DatasetSource(kind="dataset", name="docs-sft")
    assert list(read_source(source, "r", workspace.root, registry).rows) == rows
    pairs = load_pairs(registry.store, export_preferences(registry, book.campaign))
    assert [(p.chosen, p.rejected) for p in pairs] == [("ben 0", "first 0")]
    assert export_rows(registry, book.campaign, Export("sft")).artifact == snapshot.artifact
    told = [e for e in registry.ledger.events("dataset.snapshotted") if e.body["name"] == "docs-sft"]
    assert len(told) == 1


def test_judged_answers_are_good_or_bad_by_their_score(workspace: Workspace) -> None:
    def rated(*scores: int) -> Answer:
        return Answer("rated", scores={f"q{i}": s for i, s in enumerate(scores)})

    said = {
        "ann": [rated(5, 4), rated(1, 2), rated(3, 3), rated(5, 5)],
        "ben": [rated(4, 3), rated(2, 1), rated(4, 2), rated(1, 1)],
    }
    book = answered(workspace, "rate", said, 4)
    registry = Registry.of(workspace)
    assert in_process.llmops(workspace.root, "feedback", "export", "docs", "--as", "kto").code == 0
    found = read_judged("docs-kto", registry, UNCHECKED)
    assert [(row.completion, row.good) for row in found.rows] == [("first 0", True), ("first 1", False)]
    assert reasons(workspace, found.snapshot.artifact) == {"middling: score 3.00": 2}
    sft = export_rows(registry, book.campaign, Export("sft"))
    assert [r.messages[-1].content for r in load_pool(registry.store, sft, "train")] == ["first 0"]
    assert set(reasons(workspace, sft.artifact)) == {"middling: score 3.00", "bad: score 1.50"}
    refused = in_process.llmops(workspace.root, "feedback", "export", "docs")
    assert (refused.code, "export them as kto or sft" in refused.err) == (2, True)
    with pytest.raises(
        BadRequest, match="dataset docs-sft: holds conversations, where judged answers are needed"
    ):
        read_judged("docs-sft", registry, UNCHECKED)


def test_both_bad_is_two_bad_answers_and_never_a_pair(workspace: Workspace) -> None:
    book = open_train(workspace, 3)
    for says in ("first", "both_bad", "tie"):
        vote(book, "ann", says)
    registry = Registry.of(workspace)
    kto = export_rows(registry, book.campaign, Export("kto"))
    rows = lines_of(workspace, kto.artifact, "train.jsonl")
    assert [(r["messages"][-1]["content"], r["label"]) for r in rows] == [
        ("first 0", True), ("second 0", False), ("first 1", False), ("second 1", False),
    ]  # fmt: skip
    sft = export_rows(registry, book.campaign, Export("sft"))
    assert [r["messages"][-1]["content"] for r in lines_of(workspace, sft.artifact, "train.jsonl")] == [
        "first 0"
    ]


def test_rows_lead_to_their_ratings_and_ratings_to_what_learnt_from_them(workspace: Workspace) -> None:
    book = answered(workspace, "edit", {"ann": [edit("a"), edit("b")], "ben": [edit("c"), SKIP]}, 2)
    registry = Registry.of(workspace)
    snapshot = export_rows(registry, book.campaign, Export("sft"))
    given = {(r.rater, r.item): r.digest for r in book.ratings()}
    first, second = (i.digest for i in book.items())
    assert origins_of(registry.store, snapshot.artifact) == [
        (given["ann", first], given["ben", first]), (given["ann", second],),
    ]  # fmt: skip
    graph = build_graph(registry)
    node = graph.find("dataset:docs-sft")
    behind = {step.node.id for step in graph.upstream(node)}
    assert {given["ann", first], given["ben", first], given["ann", second], book.campaign.digest()} <= behind
    assert node in [s.node for s in graph.downstream(graph.find(given["ann", second][:12]))]
    withdraw(registry.ledger, "ann")
    source = DatasetSource(kind="dataset", name="docs-sft")
    with pytest.raises(
        BadRequest, match="dataset docs-sft: 2 of 2 rows rest on ratings that were taken back"
    ):
        read_source(source, "r", workspace.root, registry)
    assert (build_graph(registry).find("dataset:docs-sft").problem or "").startswith("WITHDRAWN: rests on 2")


def test_copies_and_contradictions_teach_nothing(workspace: Workspace) -> None:
    prompt = (Message("user", "one question"),)
    items = [
        Item(prompt, ("x", "y"), "g", "rows.jsonl:1"),
        Item(prompt, ("y", "x"), "g", "rows.jsonl:2"),
        Item(prompt, ("x", "z"), "g", "rows.jsonl:3"),
    ]
    for n, (votes, expected, dropped) in enumerate(
        (
            (("first", "first", "first"), [("x", "z")], {"contradiction": 2}),
            (("first", "second", "second"), [("x", "y"), ("z", "x")], {"duplicate": 1}),
        )
    ):
        campaign = make_campaign(workspace, items, name=f"c{n}", dataset=build_data(workspace, 1000))
        book = book_of(workspace, campaign)
        for says in votes:
            vote(book, "ann", says)
        registry = Registry.of(workspace)
        snapshot = export_preferences(registry, campaign)
        assert [(p.chosen, p.rejected) for p in load_pairs(registry.store, snapshot)] == expected
        assert snapshot.n_dropped == dropped


def personal(workspace: Workspace) -> RatingBook:
    items = [item(0), replace(item(1), answers=("write to bob@example.com", "no"))]
    campaign = make_campaign(workspace, items, dataset=build_data(workspace, 1000))
    book = book_of(workspace, campaign)
    for _ in items:
        vote(book, "ann", "first")
    return book


def test_personal_data_is_dropped_redacted_or_refused_as_asked(workspace: Workspace) -> None:
    pytest.importorskip("presidio_analyzer")
    book = personal(workspace)
    registry = Registry.of(workspace)
    dropped = export_preferences(registry, book.campaign)
    assert (dropped.n_pairs, dropped.n_dropped) == (1, {"pii": 1})
    done = in_process.llmops(
        workspace.root, "feedback", "export", "docs", "--pii", "redact", "--output", "p.jsonl"
    )
    assert done.code == 0, done.err
    assert "<EMAIL_ADDRESS>" in (workspace.root / "p.jsonl").read_text()
    assert "bob@" not in (workspace.root / "p.jsonl").read_text()
    refused = in_process.llmops(workspace.root, "feedback", "export", "docs", "--pii", "refuse")
    assert (refused.code, "holds 1 EMAIL_ADDRESS; give --pii drop or redact" in refused.err) == (2, True)
    kept = export_preferences(registry, book.campaign, Export(pii="off"))
    assert (kept.n_pairs, kept.rule.endswith("personal data: not looked for")) == (2, True)


def test_export_says_when_personal_data_could_not_be_looked_for(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = personal(workspace)
    monkeypatch.setattr(sift, "installed", lambda: False)
    done = in_process.llmops(workspace.root, "feedback", "export", "docs")
    assert (done.code, "personal data: not looked for" in done.err) == (0, True)
    with pytest.raises(ConfigError, match="--pii redact: needs presidio-analyzer"):
        export_preferences(Registry.of(workspace), book.campaign, Export(pii="redact"))


def test_ratings_are_told_with_all_they_are_about_and_without_names(workspace: Workspace) -> None:
    pytest.importorskip("presidio_analyzer")
    book = open_train(workspace, 2, votes_per_item=3)
    for rater in ("ann", "ben"):
        showing = book.next(rater)
        assert showing is not None
        book.rate(showing.id, Answer("left", tags=("clear",), note=f"{rater}@example.com says so"))
        book.rate(showing.id, Answer("right", note="changed my mind"))
    vote(book, "cid", "tie")
    withdraw(Registry.of(workspace).ledger, "cid")
    assert in_process.llmops(workspace.root, "feedback", "export", "docs", "--as", "ratings").code == 2
    done = in_process.llmops(
        workspace.root, "feedback", "export", "docs", "--as", "ratings", "--output", "r.jsonl"
    )
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (workspace.root / "r.jsonl").read_bytes().splitlines()]
    assert [(r["rater"], r["number"], r["live"]) for r in rows] == [
        ("r1", 1, False), ("r1", 2, True), ("r2", 3, False), ("r2", 4, True),
    ]  # fmt: skip
    assert [r["note"] for r in rows] == [None, "changed my mind"] * 2
    assert rows[0]["about"]["systems"] == ["a" * 64, "b" * 64]
    assert {r["digest"] for r in rows} < {r.digest for r in book.ratings()}
    text = (workspace.root / "r.jsonl").read_text() + (workspace.root / "r.dropped.jsonl").read_text()
    assert not any(name in text for name in ("ann", "ben", "cid"))
    lost = [json.loads(line) for line in (workspace.root / "r.dropped.jsonl").read_bytes().splitlines()]
    assert Counter(row["reason"].partition(":")[0] for row in lost) == {"pii": 2, "withdrawn": 1}


def test_gate_campaigns_are_exported_in_no_form_to_learn_from(workspace: Workspace) -> None:
    campaign = make_campaign(workspace, [item(0)], purpose="gate", dataset=build_data(workspace, 5))
    book = book_of(workspace, campaign)
    asked = ("feedback", "export", "docs", "--output", "r.jsonl", "--as")
    early = in_process.llmops(workspace.root, *asked, "ratings")
    assert (early.code, "nobody looks before all are" in early.err) == (2, True)
    vote(book, "ann", "first")
    for form in ("preferences", "kto", "sft"):
        done = in_process.llmops(workspace.root, *asked, form)
        assert (done.code, "is never trained on" in done.err) == (2, True), form
    assert in_process.llmops(workspace.root, *asked, "ratings").code == 0
    assert not Path(workspace.root / "r.jsonl").read_text().count('"rater":"ann"')
