"""A typed prompt is answered by both models over HTTP, shown when both are whole, and rated like any other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from llmops.data import find_snapshot, load_pool
from llmops.feedback.desk import Desk
from llmops.feedback.page import open_desk
from llmops.ratings.campaigns import open_campaign, put_items
from llmops.ratings.check import verify_ratings
from llmops.records import Campaign
from llmops.tables import item_texts
from tests.evals.conftest import Room, room
from tests.evals.counterpart import Counterpart, Fault
from tests.feedback.browser import rater_id, ratings_of

__all__ = ["room"]


def put_typed(room: Room, counterpart: Counterpart) -> Campaign:
    """Open a campaign of prompts that raters type: the adapter against its base."""
    campaign = Campaign(
        "typed", "train", "Which?", (room.adapter.adapter, room.base.digest), None, None, room.base.digest,
        room.adapter.prompt_contract, counterpart.engine, {"temperature": 0.7, "max_tokens": 16, "seed": 0},
        put_items(room.registry.store, []), 0, {}, 1, "2026-11-21T00:00:00.000Z", origin="typed",
    )  # fmt: skip
    open_campaign(room.registry.store, room.registry.ledger, campaign)
    return campaign


def desk_at(room: Room, counterpart: Counterpart) -> Desk:
    put_typed(room, counterpart)
    return open_desk(room.workspace, "typed", lambda: counterpart.url)[0]


def by_model(model: str, prompt: str, nth: int) -> str:
    return f"{prompt} {'adapted' if model.startswith('docs@') else 'base'} {nth}"


@pytest.fixture
def desk(room: Room) -> Desk:
    return desk_at(room, room.serve(by_model))


def test_both_models_answer_one_prompt_and_the_vote_is_for_the_one_on_that_side(room: Room) -> None:
    counterpart = room.serve(by_model)
    desk = desk_at(room, counterpart)
    entered = desk.next_item({"rater": "Ann"})
    assert (entered["about"]["typed"], entered["item"]) == (True, None)
    lefts = []
    for n in range(1, 4):
        item = desk.ask_both({"rater": "Ann", "prompt": "Say hi."})["item"]
        assert item["typed"] is True
        texts = [answer["text"] for answer in item["answers"]]
        assert sorted(texts) == [f"Say hi. adapted {n}", f"Say hi. base {n}"]
        assert desk.rate_item({"rater": "Ann", "showing": item["showing"], "choice": "a"})["saved"] == n
        row = ratings_of(room.workspace, "Ann", "typed")[-1]
        assert (row.preferred == 0) == ("adapted" in texts[0])
        lefts.append(row.left)
    assert len(counterpart.bodies) == 6
    assert len({body["seed"] for body in counterpart.bodies}) == 6
    assert {body["temperature"] for body in counterpart.bodies} == {0.7}
    assert verify_ratings(room.registry.store, room.registry.ledger) == 3
    with room.registry.ledger.engine.connect() as connection:
        owners = connection.execute(select(item_texts.c.owner)).scalars().all()
    assert set(owners) == {rater_id(room.workspace, "Ann")}


def test_nothing_is_told_before_the_slower_answer_is_whole(room: Room) -> None:
    go, told = threading.Event(), list[dict[str, Any]]()

    def script(model: str, prompt: str, nth: int) -> str:
        if model.startswith("docs@"):
            return "fast"
        assert go.wait(30)
        return "slow"

    counterpart = room.serve(script)
    desk = desk_at(room, counterpart)
    thread = threading.Thread(target=lambda: told.append(desk.ask_both({"rater": "Ann", "prompt": "p"})))
    thread.start()
    while not counterpart.asked:
        go.wait(0.005)
    assert told == []
    assert desk.next_item({"rater": "Ann"})["item"] is None, "half a pair is no item"
    go.set()
    thread.join(30)
    assert sorted(answer["text"] for answer in told[0]["item"]["answers"]) == ["fast", "slow"]


def faults(room: Room) -> dict[str, tuple[Callable[..., str | Fault], str]]:
    foreign = {"x-llmops-model": "f" * 64}
    return {
        "one fails": (
            lambda m, p, n: Fault(status=400, message="no") if "base" in m else "a",
            "gave no whole answer",
        ),
        "another answers": (
            lambda m, p, n: Fault(text="a", headers=foreign),
            "an answer came from ffffffffffff",
        ),
    }


@pytest.mark.parametrize("fault", ["one fails", "another answers"])
def test_an_answer_that_fails_or_is_anothers_leaves_no_item(room: Room, fault: str) -> None:
    script, said = faults(room)[fault]
    desk = desk_at(room, room.serve(script))
    assert said in desk.ask_both({"rater": "Ann", "prompt": "p"})["error"]
    with room.registry.ledger.engine.connect() as connection:
        assert connection.execute(select(item_texts)).all() == []


def test_a_gates_prompt_an_empty_one_and_a_gone_endpoint_are_said(room: Room, desk: Desk) -> None:
    snapshot = find_snapshot(room.registry.store, room.registry.ledger, "questions")
    gate = next(iter(load_pool(room.registry.store, snapshot, "gate"))).messages[0].content
    assert "a gate of this workspace decides on it" in desk.ask_both({"rater": "A", "prompt": gate})["error"]
    assert "is empty" in desk.ask_both({"rater": "A", "prompt": " \n"})["error"]
    nowhere = open_desk(room.workspace, "typed")[0]
    assert "--endpoint URL" in nowhere.ask_both({"rater": "A", "prompt": "p"})["error"]
