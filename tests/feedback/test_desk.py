"""The desk beyond choosing: scores, corrections, reasons, and answers that are taken back or come twice."""

from __future__ import annotations

from typing import Any

import pytest

from llmops.errors import BadRequest
from llmops.feedback.page import open_desk
from llmops.ratings.check import verify_ratings
from llmops.ratings.outcomes import live
from llmops.records import Item, Message
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from tests import in_process
from tests.feedback.browser import plain_items, put_campaign, ratings_of

RUBRIC = """
tags: [wrong, long]
questions:
  - {id: correct, text: "Is it true?", scale: [a, b, c, d, e], tags: [made up]}
  - {id: clear, text: "Is it clear?", scale: [a, b, c, d, e], required: false}
"""


def one(prompt: str, answer: str) -> Item:
    """An item with a single answer."""
    return Item((Message("user", prompt),), (answer,), "g", prompt)


@pytest.fixture
def rubric(workspace: Workspace) -> None:
    (workspace.root / "feedback_ui").mkdir()
    (workspace.root / "feedback_ui" / "rubric.yaml").write_text(RUBRIC)


@pytest.mark.usefixtures("rubric")
def test_scores_tags_and_a_note_are_the_rating(workspace: Workspace) -> None:
    put_campaign(workspace, [one("p", "an answer")], kind="rate")
    desk, _, _ = open_desk(workspace, None)
    shown = desk.next_item({"rater": "Ann"})
    assert shown["about"]["kind"] == "rate"
    assert [q["id"] for q in shown["about"]["questions"]] == ["correct", "clear"]
    assert [a["text"] for a in shown["item"]["answers"]] == ["an answer"]
    call = {"rater": "Ann", "showing": shown["item"]["showing"], "choice": "rated"}
    refused = desk.rate_item({**call, "scores": {"clear": 2}})
    assert refused == {"error": "rating: 'Is it true?' is not answered; give 1 to 5"}
    assert "not on the scale" in desk.rate_item({**call, "scores": {"correct": 7}})["error"]
    assert (
        "not in the rubric" in desk.rate_item({**call, "scores": {"correct": 3}, "tags": ["nice"]})["error"]
    )
    assert ratings_of(workspace) == []
    said = {"scores": {"correct": 4}, "tags": ["made up", "wrong"], "note": " why not "}
    assert desk.rate_item({**call, **said})["saved"] == 1
    (row,) = ratings_of(workspace, "Ann")
    assert (row.choice, row.scores, row.tags) == ("rated", {"correct": 4}, ("wrong", "made up"))
    given = desk.last_item({"rater": "Ann"})["given"]
    assert (given["note"], given["scores"], given["tags"]) == (
        "why not",
        {"correct": 4},
        ["wrong", "made up"],
    )


def test_a_correction_is_kept_word_by_word(workspace: Workspace) -> None:
    put_campaign(workspace, [one("p", "teh answer"), one("q", "right")], kind="edit")
    desk, _, _ = open_desk(workspace, None)
    call = {"rater": "Ann", "choice": "edited"}
    first = desk.next_item(call)["item"]["showing"]
    assert "may not be empty" in desk.rate_item({**call, "showing": first, "edit": " "})["error"]
    second = desk.rate_item({**call, "showing": first, "edit": "  the\n\tanswer "})["item"]["showing"]
    assert desk.rate_item({**call, "showing": second, "choice": "kept", "edit": None})["item"] is None
    assert [r.choice for r in ratings_of(workspace, "Ann")] == ["edited", "kept"]
    last = desk.last_item({"rater": "Ann", "before": 2})["given"]
    assert (last["edit"], last["choice"]) == ("  the\n\tanswer ", "edited")
    registry = Registry.of(workspace)
    assert verify_ratings(registry.store, registry.ledger) == 2


@pytest.mark.parametrize(
    ("kind", "wrong"), [("compare", "rated"), ("rate", "a"), ("edit", "tie"), ("compare", "undone")]
)
def test_an_answer_of_another_kind_is_refused_by_name(workspace: Workspace, kind: Any, wrong: str) -> None:
    put_campaign(workspace, plain_items(1) if kind == "compare" else [one("p", "x")], kind=kind)
    desk, _, _ = open_desk(workspace, None)
    showing = desk.next_item({"rater": "Ann"})["item"]["showing"]
    error = desk.rate_item({"rater": "Ann", "showing": showing, "choice": wrong})["error"]
    assert error.startswith(f"rating: {wrong!r} is not an answer; give one of ")
    assert "undone" not in error.split(";")[1]


def test_undo_takes_back_the_last_answer_by_a_rating_and_brings_its_item_back(workspace: Workspace) -> None:
    put_campaign(workspace, plain_items(3))
    desk, _, _ = open_desk(workspace, None)
    first = desk.next_item({"rater": "Ann"})["item"]
    open_item = desk.rate_item({"rater": "Ann", "showing": first["showing"], "choice": "a"})["item"]
    assert desk.undo_item({"rater": "Bob"}) == {"undone": None}
    undone = desk.undo_item({"rater": "Ann"})
    assert (undone["undone"], undone["item"], undone["standing"]["n_mine"]) == (1, first, 0)
    rows = ratings_of(workspace, "Ann")
    assert [(r.choice, r.supersedes) for r in rows] == [("left", None), ("undone", rows[0].digest)]
    assert desk.undo_item({"rater": "Ann"}) == {"undone": None}
    assert desk.last_item({"rater": "Ann"}) == {"item": None}
    again = desk.rate_item({"rater": "Ann", "showing": first["showing"], "choice": "b"})
    assert again["item"] == open_item
    assert [r.choice for r in live(ratings_of(workspace, "Ann"))] == ["right"]


def test_a_rater_withdraws_by_the_name_they_rated_under(workspace: Workspace) -> None:
    put_campaign(workspace, plain_items(2))
    desk, _, _ = open_desk(workspace, None)
    showing = desk.next_item({"rater": "Ann"})["item"]["showing"]
    desk.rate_item({"rater": "Ann", "showing": showing, "choice": "a"})
    assert in_process.llmops(workspace.root, "feedback", "withdraw", "Bob").code == BadRequest.exit_code
    done = in_process.llmops(workspace.root, "feedback", "withdraw", "Ann")
    assert "withdrawn Ann: 1 ratings count no more" in done.out
    assert "has withdrawn" in desk.next_item({"rater": "ann"})["error"]


def test_one_key_is_one_answer_however_often_it_arrives(workspace: Workspace) -> None:
    put_campaign(workspace, plain_items(2))
    desk, _, _ = open_desk(workspace, None)
    showing = desk.next_item({"rater": "Ann"})["item"]["showing"]
    call = {"rater": "Ann", "showing": showing, "choice": "a", "key": "0" * 32}
    assert [desk.rate_item(call)["saved"] for _ in range(3)] == [1, 1, 1]
    assert desk.rate_item({**call, "choice": "b", "key": "1" * 32})["saved"] == 2
    assert desk.rate_item(call)["saved"] == 1, "a late repeat of the first answer does not undo the second"
    assert [r.choice for r in live(ratings_of(workspace))] == ["right"]
