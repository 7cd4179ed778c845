"""Campaigns of one answer an item, and of prompts that raters will type, opened through the endpoint."""

from __future__ import annotations

from typing import Any

import pytest

from llmops.errors import ConfigError
from llmops.feedback.campaign_file import TypedCampaign, load_campaign_file
from llmops.feedback.samples import SampleRequest, open_for_typed
from llmops.ratings.added import Owned, typed_item
from llmops.ratings.rows import Answer
from tests.evals.conftest import Room, right, room, write
from tests.feedback.test_open import QUICK, items_of, numbered, sampled
from tests.ratings.campaign import book_of

__all__ = ["room"]

TYPED: dict[str, Any] = {
    "name": "typed", "purpose": "train", "source": "typed", "models": ["docs", "base"],
    "decoding": {"temperature": 0.8, "max_tokens": 16},
}  # fmt: skip


def test_one_answer_a_prompt_is_sampled_to_edit(room: Room) -> None:
    counterpart = room.serve(lambda m, p, n: "" if p[-1] == "4" and n < 3 else numbered(m, p, n))
    campaign = sampled(room, counterpart, kind="edit", n_items=8)
    items = items_of(room, campaign)
    assert (campaign.kind, campaign.n_items, campaign.systems) == ("edit", 8, (room.adapter.adapter,))
    assert {len(i.answers) for i in items} == {1}
    for item in items:
        prompt = item.messages[0].content
        assert item.answers[0] == f"{right(prompt)}, try {3 if prompt[-1] == '4' else 1}"
    book = book_of(room.workspace, campaign)
    showing = book.next("ann")
    assert showing is not None
    assert book.rate(showing.id, Answer("kept")).choice == "kept"


def test_typed_campaign_opens_on_both_models_and_has_no_items_yet(room: Room) -> None:
    counterpart = room.serve(numbered)
    file = load_campaign_file(write(room.workspace.root / "typed.yaml", TYPED))
    assert isinstance(file, TypedCampaign)
    campaign = open_for_typed(room.registry, file, SampleRequest(counterpart.url, 4, QUICK))
    assert counterpart.asked == []
    assert (campaign.origin, campaign.n_items) == ("typed", 0)
    assert campaign.systems == (room.adapter.adapter, room.base.digest)
    assert campaign.decoding["max_tokens"] == 16
    assert campaign.engine is not None
    book = book_of(room.workspace, campaign)
    assert book.next("ann") is None
    showing = book.add([Owned(typed_item("why?", ("a", "b"), campaign.systems), "ann")], "ann")  # type: ignore[arg-type]
    assert showing is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "rate", "models": ["docs"]}, "kind: typed prompts are compared"),
        ({"repeats_frac": 0.1}, "a typed prompt is its rater's own"),
        ({"source": "samples", "dataset": "d", "n_items": 2, "kind": "rate"}, "kind rate shows one answer"),
        ({"overlap": {"frac": 0.5, "votes": 2}, "votes_per_item": 2}, "overlap.votes: 2 is no more than"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_named(room: Room, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_campaign_file(write(room.workspace.root / "typed.yaml", {**TYPED, **change}))
