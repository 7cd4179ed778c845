"""Campaigns on answers that a gateway served: over HTTP in, by the command line out, and gone with their user."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from llmops.capture import Keyring, interactions
from llmops.capture.keyring import VARIABLE, new_key
from llmops.errors import BadRequest, ConfigError
from llmops.ledger import Ledger
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import find_campaign
from llmops.ratings.check import verify_ratings
from llmops.ratings.preferences import find_preferences
from llmops.ratings.rows import Answer
from llmops.records import Pins
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.store import Store
from tests.evals.conftest import write
from tests.in_process import llmops
from tests.ratings.campaign import book_of, vote
from tests.serving.bare import Bare, bare_gateway, target
from tests.serving.gateway import wait_for

pytestmark = pytest.mark.walk


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, new_key())


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    with bare_gateway(tmp_path, capture={"sample_frac": 1.0, "personal_data": "off"}) as bare:
        yield bare


def serve(bare: Bare, *asked: tuple[str, str, tuple[str, ...]]) -> list[str]:
    """Requests of (user, prompt, answers), captured; returns the ids of the responses."""
    answers: list[tuple[str, ...]] = []

    async def reply(request: web.Request, body: dict[str, Any]) -> web.Response:
        n = len(answers)
        said = next(texts for user, prompt, texts in asked if prompt == body["messages"][-1]["content"])
        answers.append(said)
        choices = [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for i, text in enumerate(said)
        ]
        return web.json_response({"id": f"chatcmpl-{n}", "model": body["model"], "choices": choices})

    bare.engine.reply = reply
    ids = [bare.chat(text=prompt, n=len(texts), user=user).json()["id"] for user, prompt, texts in asked]
    engine = Ledger.of(bare.workspace).engine
    wait_for(lambda: len(list(interactions(engine, Keyring.of_environment()))) == len(asked))
    return ids


def opened(bare: Bare, **settings: Any) -> RatingBook:
    root = bare.workspace.root
    write(
        root / "served.yaml",
        {"name": "served", "purpose": "train", "source": "captures", "n_items": 9, **settings},
    )
    done = llmops(root, "feedback", "open", "served.yaml")
    assert done.code == 0, done.err
    store, ledger = Store.of(bare.workspace), Ledger.of(bare.workspace)
    return book_of(bare.workspace, find_campaign(store, ledger, "served"))


def test_served_pairs_become_preferences_and_go_with_their_user(bare: Bare) -> None:
    root = bare.workspace.root
    serve(bare, ("ada", "Which, wombat?", ("heads", "tails")), ("bob", "What else?", ("rain", "snow")))
    book = opened(bare)
    campaign = book.campaign
    assert (campaign.origin, campaign.n_items, campaign.systems) == ("captures", 2, (target("docs").digest,))
    assert {i.answers for i in book.items()} == {("heads", "tails"), ("rain", "snow")}
    first = next(i for i in book.items() if i.answers[0] == "heads")
    assert first.responses == ("chatcmpl-0", "chatcmpl-0#1")
    assert Pins.of(campaign, first).systems == (target("docs").digest,) * 2
    for _ in range(2):
        vote(book, "ann", "first")
    # Encrypted at rest, in the campaign's rows too.
    at_rest = b"".join(p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file())
    assert b"wombat" not in at_rest
    done = llmops(root, "feedback", "export", "served", "--output", "pairs.jsonl")
    assert done.code == 0, done.err
    assert "pairs    2 of 2 items" in done.out
    (root / "pairs.jsonl").unlink()
    registry = Registry.of(bare.workspace)
    before = find_preferences(registry.store, registry.ledger, "served")
    gone = llmops(root, "capture", "forget", "--user", "ada")
    assert gone.code == 0, gone.err
    assert "1 rated items" in gone.out
    with pytest.raises(
        BadRequest, match="1 of 2 rows rest on ratings that were taken back, or whose texts were deleted"
    ):
        find_preferences(registry.store, registry.ledger, "served")
    status = llmops(root, "status").out
    assert f"flagged    preferences {short(before.digest())} served WITHDRAWN: rests on 1 rating" in status
    assert (
        "WITHDRAWN: the texts it is about were deleted"
        in llmops(root, "lineage", f"preferences:{before.digest()[:12]}").out
    )
    again = llmops(root, "feedback", "export", "served", "--output", "pairs.jsonl")
    assert again.code == 0, again.err
    rows = [json.loads(line) for line in (root / "pairs.jsonl").read_bytes().splitlines()]
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("rain", "snow")]
    lost = [json.loads(line) for line in (root / "pairs.dropped.jsonl").read_bytes().splitlines()]
    assert [row["reason"] for row in lost] == ["deleted: its texts were, on demand"]
    assert lost[0]["item"] == first.digest
    assert verify_ratings(Store.of(bare.workspace), Ledger.of(bare.workspace)) == 2
    with sqlite3.connect(bare.workspace.state / "llmops.db") as database:
        assert database.execute("select count(*) from item_texts").fetchone() == (1,)


def test_answers_that_users_called_bad_are_edited(bare: Bare) -> None:
    bad, good, _ = serve(
        bare, ("ada", "One?", ("wrong",)), ("bob", "Two?", ("right",)), ("cid", "Three?", ("unsaid",))
    )
    for response, thumb in ((bad, "down"), (good, "up")):
        said = httpx.post(
            f"{bare.url}/v1/feedback", json={"response_id": response, "thumb": thumb}, timeout=30
        )
        assert said.status_code == 201, said.text
    book = opened(bare, source="feedback", kind="edit")
    (item,) = book.items()
    assert (item.answers, item.messages[0].content) == (("wrong",), "One?")
    showing = book.next("ann")
    assert showing is not None
    book.rate(showing.id, Answer("edited", edit="mended"))
    assert llmops(bare.workspace.root, "feedback", "export", "served", "--as", "sft").code == 0
    kto = llmops(bare.workspace.root, "feedback", "export", "served", "--as", "kto", "--output", "kto.jsonl")
    assert kto.code == 0, kto.err
    rows = [json.loads(line) for line in (bare.workspace.root / "kto.jsonl").read_bytes().splitlines()]
    assert [(r["messages"][-1]["content"], r["label"]) for r in rows] == [("mended", True), ("wrong", False)]


def test_campaign_of_encrypted_texts_needs_their_key(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(bare, ("ada", "Which?", ("heads", "tails")))
    book = opened(bare)
    monkeypatch.setenv(VARIABLE, new_key())
    with pytest.raises(ConfigError, match="was encrypted with key"):
        book_of(bare.workspace, book.campaign)
    shown = llmops(bare.workspace.root, "feedback", "show", "served")
    assert (shown.code, "add that key" in shown.err) == (2, True)
    assert llmops(bare.workspace.root, "feedback", "list").out.splitlines()[1].split()[4] == "locked"


def test_nothing_captured_opens_nothing(bare: Bare) -> None:
    root = bare.workspace.root
    write(root / "served.yaml", {"name": "served", "purpose": "train", "source": "captures", "n_items": 9})
    done = llmops(root, "feedback", "open", "served.yaml")
    assert (done.code, "nothing to rate (nothing fits its file); set `capture.sample_frac`" in done.err) == (
        2,
        True,
    )
    write(root / "wrong.yaml", {"name": "served", "purpose": "train", "source": "feedback", "n_items": 9})
    wrong = llmops(root, "feedback", "open", "wrong.yaml")
    assert (wrong.code, "source feedback: what users said is of one answer" in wrong.err) == (2, True)
    assert Ledger.of(bare.workspace).events("campaign.opened") == []
