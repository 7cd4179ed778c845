"""Exports of Argilla and Label Studio come in whole: what can be read is a rating, the rest is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmops.errors import BadRequest
from llmops.ledger import Ledger
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import find_campaign, is_closed
from llmops.ratings.check import verify_ratings
from llmops.ratings.insight import insight
from llmops.ratings.outcomes import vote_of
from llmops.settings import Workspace
from llmops.store import Store
from tests import in_process
from tests.evals.conftest import write
from tests.feedback.test_export import build_data
from tests.ratings.campaign import book_of, item, make_campaign

COMPARE = {
    "name": "brought", "format": "argilla", "prompt": "prompt", "answers": ["reply_1", "reply_2"], "vote": "better",
    "values": {"reply_1": "first", "reply_2": "second", "neither": "both_bad"}, "note": "why", "licence": "CC-BY-4.0",
}  # fmt: skip


def record(i: int, **responses: list[tuple[str, Any]]) -> dict[str, Any]:
    """A record as Argilla's `to_json` writes it."""
    return {
        "id": str(i),
        "fields": {"prompt": f"question {i}", "reply_1": f"first {i}", "reply_2": f"second {i}"},
        "metadata": {}, "suggestions": {}, "vectors": {}, "_server_id": None,
        "responses": {q: [{"value": v, "user_id": u} for u, v in said] for q, said in responses.items()},
    }  # fmt: skip


def bring(workspace: Workspace, how: dict[str, Any], export: object) -> RatingBook:
    write(workspace.root / "map.yaml", how)
    (workspace.root / "export.json").write_text(json.dumps(export))
    done = in_process.llmops(workspace.root, "feedback", "import", "map.yaml", "export.json")
    assert done.code == 0, done.err
    store, ledger = Store.of(workspace), Ledger.of(workspace)
    return book_of(workspace, find_campaign(store, ledger, how["name"]))


def votes(book: RatingBook) -> dict[tuple[str, str], str | None]:
    prompt = {i.digest: i.messages[0].content for i in book.all_items()}
    return {(r.rater, prompt[r.item]): vote_of(r) for r in book.ratings()}


def test_argillas_answers_are_ratings_of_raters_kept_apart(workspace: Workspace) -> None:
    export = [
        record(0, better=[("u1", "reply_1"), ("u2", "reply_2")], why=[("u1", "clearer")]),
        record(1, better=[("u1", "neither"), ("u2", "both are fine")]),
        record(2),
        {"id": "3", "fields": {"prompt": "question 3", "reply_1": "only one"}, "responses": {}},
    ]
    book = bring(workspace, COMPARE, export)
    assert votes(book) == {
        ("argilla:u1", "question 0"): "first",
        ("argilla:u2", "question 0"): "second",
        ("argilla:u1", "question 1"): "both_bad",
    }
    assert list(book.texts().values()) == ["clearer"]
    campaign = book.campaign
    assert (campaign.origin, campaign.purpose, campaign.n_items) == ("argilla", "train", 3)
    assert is_closed(Ledger.of(workspace), campaign.digest())
    assert campaign.n_dropped == {"missing field": 1, "unknown value": 1}
    path = Store.of(workspace).verify("items", campaign.items) / "dropped.jsonl"
    lost = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [row["source"] for row in lost] == ["export.json:2 (argilla:u2)", "export.json:4"]
    assert verify_ratings(Store.of(workspace), Ledger.of(workspace)) == 3
    seen = insight(book)
    assert all(person.is_imported and person.per_hour is None for person in seen.raters)
    assert seen.left.n == 0
    mine = book_of(workspace, make_campaign(workspace, [item(5)], name="own"))
    with pytest.raises(BadRequest, match="give a name of 1 to 128"):
        mine.next("argilla:u1")


def test_argillas_rankings_and_older_records_are_read(workspace: Workspace) -> None:
    ranking = [{"value": "reply_2", "rank": 1}, {"value": "reply_1", "rank": 2}]
    tied = [{"value": "reply_2", "rank": 1}, {"value": "reply_1", "rank": 1}]
    older = {
        "fields": {"prompt": "question 2", "reply_1": "first 2", "reply_2": "second 2"},
        "responses": [
            {"user_id": "u1", "status": "submitted", "values": {"better": {"value": ["reply_1", "reply_2"]}}},
            {"user_id": "u2", "status": "discarded", "values": {}},
        ],
    }
    book = bring(
        workspace, COMPARE, [record(0, better=[("u1", ranking)]), record(1, better=[("u1", tied)]), older]
    )
    assert [v for _, v in sorted(votes(book).items())] == ["second", "tie", "first"]
    assert book.campaign.n_dropped == {"not submitted": 1}


LABEL_STUDIO = {
    "name": "ls", "format": "label_studio", "prompt": "prompt", "answers": ["text1", "text2"], "vote": "pw",
    "tags": "reasons",
}  # fmt: skip


def task(i: int, *annotations: dict[str, Any]) -> dict[str, Any]:
    data = {
        "prompt": [{"role": "user", "content": f"question {i}"}],
        "text1": f"first {i}",
        "text2": f"second {i}",
    }
    return {"id": i, "data": data, "annotations": list(annotations), "predictions": []}


def annotation(who: object, *regions: tuple[str, str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    result = [
        {"id": f"r{n}", "from_name": name, "to_name": "text1,text2", "type": kind, "value": value}
        for n, (name, kind, value) in enumerate(regions)
    ]
    return {"id": 1, "completed_by": who, "was_cancelled": False, "lead_time": 4.5, "result": result, **more}


def test_label_studios_pairs_are_read_with_labels_and_time(workspace: Workspace) -> None:
    left = ("pw", "pairwise", {"selected": "left"})
    why = ("reasons", "choices", {"choices": ["correct", "short"]})
    export = [
        task(
            0,
            annotation(7, left, why),
            annotation({"id": 8, "email": "x@example.com"}, ("pw", "pairwise", {"selected": "right"})),
        ),
        task(
            1,
            annotation(7, was_cancelled=True),
            annotation(7, left),
            annotation(7, ("pw", "pairwise", {"selected": "right"})),
        ),
    ]
    book = bring(workspace, LABEL_STUDIO, export)
    assert votes(book) == {
        ("label_studio:7", "question 0"): "first",
        ("label_studio:8", "question 0"): "second",
        ("label_studio:7", "question 1"): "second",  # the later answer
    }
    first = book.ratings()[0]
    assert (first.tags, first.dwell_ms) == (("correct", "short"), 4500)
    assert book.campaign.n_dropped == {"not submitted": 1}
    # One rater, one vote: the earlier annotation is superseded.
    assert (len(book.ratings()), insight(book).n_votes) == (4, 3)
    assert verify_ratings(Store.of(workspace), Ledger.of(workspace)) == 4


def test_ratings_and_corrections_of_label_studio_are_read(workspace: Workspace) -> None:
    rate = {**LABEL_STUDIO, "name": "rate", "kind": "rate", "answers": ["text1"], "scores": ["stars"]}
    rate = {k: v for k, v in rate.items() if k not in ("vote", "tags")}
    stars = ("stars", "rating", {"rating": 4})
    book = bring(workspace, rate, [task(0, annotation(1, stars), annotation(2))])
    assert [(r.rater, r.scores) for r in book.ratings()] == [("label_studio:1", {"stars": 4})]
    assert book.campaign.n_dropped == {"no answer": 1}
    edit = {**rate, "name": "edit", "kind": "edit", "edit": "fixed"}
    edit.pop("scores")
    fixed = ("fixed", "textarea", {"text": ["a better", "answer"]})
    book = bring(workspace, edit, [task(0, annotation(1, fixed))])
    assert list(book.texts().values()) == ["a better\nanswer"]


def test_gates_prompts_are_not_brought_in(workspace: Workspace) -> None:
    build_data(workspace, 1)
    book = bring(workspace, COMPARE, [record(i, better=[("u1", "reply_1")]) for i in range(3)])
    assert [i.messages[0].content for i in book.items()] == ["question 0", "question 2"]
    assert book.campaign.n_dropped == {"gate prompt": 1}


def test_imported_preferences_are_exported_under_their_licence(workspace: Workspace) -> None:
    bring(workspace, COMPARE, [record(i, better=[("u1", "reply_2")]) for i in range(2)])
    done = in_process.llmops(workspace.root, "feedback", "export", "brought", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["n_pairs"], told["licence"], told["dataset"]) == (2, "CC-BY-4.0", None)


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "not JSON": ({}, "{", "is not JSON"),
    "JSON-MIN": (
        {"format": "label_studio"},
        '[{"id": 1, "text1": "a"}]',
        "Label Studio's JSON (not JSON-MIN)",
    ),
    "an object": ({}, "{}", "is not a list of records with 'fields'"),
    "nothing usable": (
        {},
        '[{"fields": {}, "responses": {}}]',
        "nothing in it can be used (1 missing field)",
    ),
    "no vote": ({"vote": None}, "[]", "vote: kind compare needs it"),
    "one answer": ({"answers": ["a"]}, "[]", "kind compare has 2 of each"),
    "no such adapter": ({"systems": ["x", "y"]}, "[]", "adapter x"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_export_brings_nothing_in(workspace: Workspace, tmp_path: Path, what: str) -> None:
    changes, text, said = BAD[what]
    write(tmp_path / "map.yaml", {k: v for k, v in {**COMPARE, **changes}.items() if v is not None})
    (tmp_path / "export.json").write_text(text)
    done = in_process.llmops(tmp_path, "feedback", "import", "map.yaml", "export.json")
    assert (done.code, said in done.err) == (2, True), done.err
    assert Ledger.of(workspace).events("campaign.opened", "rating.given") == []
