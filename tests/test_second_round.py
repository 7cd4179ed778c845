"""The second round: people rate in a browser, their votes train the next adapter, gate it, and back its release.

The model is tiny, all else is real: the page in Chromium, the trainer, the engine, the gateway. Who answered is read
from the gateway's request log, what was rated from what the browser showed.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmops.settings import find_workspace
from tests.feedback.browser import Rater, Seen, Served, chromium, require_same, started
from tests.loop import (
    ANSWERS,
    DATA,
    GATE,
    GATE_CAMPAIGN,
    NAME,
    PROFILE,
    RATED_GATE,
    RECIPE,
    SECOND_RECIPE,
    SUITE,
    TRAIN_CAMPAIGN,
    Loop,
)
from tests.tiny import build_tiny_model

pytestmark = [pytest.mark.walk, pytest.mark.browser, pytest.mark.timeout(900)]

WANTED = dict(zip(("add", "list", "close"), ANSWERS, strict=True))
KEYS = {"a": "1", "b": "2", "tie": "3", "both_bad": "4", "skip": "5"}


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A workspace whose name `docs` has a champion that is right about half of the time, and an endpoint running."""
    root = tmp_path_factory.mktemp("second")
    loop = Loop(root, tmp_path_factory.mktemp("cache"))
    base = build_tiny_model(root / "base", max_len=512)
    (root / "llmops.yaml").write_text("name: second\n")
    loop.write_rows()
    loop.write(
        "data.yaml", DATA.replace("train: 0.7, rate: 0.1, gate: 0.2", "train: 0.5, rate: 0.25, gate: 0.25")
    )
    first = {"r": 16, "alpha": 32, "learning_rate": "1e-2", "n_steps": 16, "seed": 0, "tracking": "none"}
    loop.write("first.yaml", RECIPE, base=base, **first)
    loop.write("second.yaml", SECOND_RECIPE, base=base, n_steps=15, learning_rate="5e-4")
    loop.write("serve.yaml", PROFILE, base=base)
    loop.write("suite.yaml", SUITE, n_cases=36)
    loop.write("gate.yaml", GATE, kind="superior", bound="by: 0")
    loop.write("rated.yaml", RATED_GATE, min_items=5, margin=45)
    loop.write("train.yaml", TRAIN_CAMPAIGN, temperature=0.7, n_items=30)
    loop.write("votes.yaml", GATE_CAMPAIGN, gate="rated.yaml", n_items=16)
    loop.llmops("data", "build", "data.yaml")
    loop.llmops("finetune", "first.yaml")
    loop.llmops("serve", "serve.yaml", "--detach")
    try:
        loop.llmops("eval", "suite.yaml", "--gate", "gate.yaml", "--gate", "rated.yaml")
        loop.llmops("gate", "check", "gate.yaml")
        loop.llmops("release", "promote", NAME)
        yield loop
    finally:
        loop.llmops("stop")


def _page(loop: Loop, campaign: str) -> Served:
    command = [*loop.command(), "feedback", "ui", campaign, "--port", "0"]
    return started(command, find_workspace(loop.root), cwd=loop.root, env=loop.environment())


def _judge(rater: Rater) -> str:
    """What somebody who knows the right answers would choose: the nearer one, neither when both are far off."""
    prompt, left, right = rater.shown()
    wanted = WANTED[prompt.split()[0]]
    near = [difflib.SequenceMatcher(None, text, wanted).ratio() for text in (left, right)]
    if max(near) < 0.5:
        return "both_bad"
    return "tie" if near[0] == near[1] else ("a" if near[0] > near[1] else "b")


def _rate_all(rater: Rater, first: tuple[str, ...] = ()) -> list[Seen]:
    """Rate until nothing is left, by mouse and by keyboard in turn; `first` are answers given whatever is shown."""
    seen: list[Seen] = []
    while not rater.page.locator("[data-part=done-head]").is_visible():
        choice = first[len(seen)] if len(seen) < len(first) else _judge(rater)
        seen.append(rater.answer(choice, KEYS[choice] if len(seen) % 2 else None))
        rater.page.wait_for_function(
            "() => document.querySelector('[data-choice=a]:not([aria-disabled=true])')?.offsetParent"
            " || document.querySelector('[data-part=done-head]')?.offsetParent"
        )
    return seen


def _rate_campaign(loop: Loop, campaign: str, first: tuple[str, ...] = ()) -> list[Seen]:
    served = _page(loop, campaign)
    try:
        with chromium() as browser:
            rater = Rater(browser, served.url, "ann").sign_in()
            before = rater.shown()
            rater.page.reload()
            assert rater.ready().shown() == before
            seen = _rate_all(rater, first)
            assert rater.foreign() == []
    finally:
        served.end()
    require_same(find_workspace(loop.root), "ann", seen, campaign)
    return seen


def _lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_votes_train_the_next_adapter_gate_it_and_it_is_served(loop: Loop) -> None:
    champion = json.loads(loop.llmops("status", "--json").out)["names"][0]["champion"]
    pid = json.loads((loop.root / ".llmops/serve.json").read_text())["pid"]

    loop.llmops("feedback", "open", "train.yaml")
    seen = _rate_campaign(loop, "docs-train", first=("tie", "both_bad", "skip"))
    chosen = {(s.prompt, s.chosen) for s in seen if s.chosen is not None}

    # Exactly the rows that were rated become pairs; every other item is listed with its reason.
    loop.llmops("feedback", "export", "docs-train", "--output", "pairs.jsonl")
    pairs = _lines(loop.root / "pairs.jsonl")
    assert {(p["messages"][-1]["content"], p["chosen"]) for p in pairs} == chosen
    assert len(pairs) == sum(s.chosen is not None for s in seen) >= 8
    dropped = _lines(next((loop.root / ".llmops/store/preferences").glob("*/dropped.jsonl")))
    assert len(pairs) + len(dropped) == len(seen)
    kept_out = {json.dumps(r["messages"][-2]) for r in _gate_rows(loop)}
    assert not kept_out & {json.dumps(p["messages"][-1]) for p in pairs}

    said = loop.llmops("finetune", "second.yaml").out
    assert f"parent   {champion}" in said
    assert f"learnt   {len(pairs)} preferences of docs-train@" in said
    second = re.findall(r"docs@[0-9a-f]{12}", loop.llmops("adapter", "list").out)[-1]
    assert second != champion
    lineage = json.loads(loop.llmops("adapter", "show", second, "--json").out)["lineage"]
    assert lineage["continues"].startswith(champion[5:])

    loop.llmops("eval", "suite.yaml", "--gate", "gate.yaml", "--gate", "rated.yaml")
    unrated = loop.llmops("gate", "check", "rated.yaml", check=False)
    assert unrated.code == 3
    assert "feedback open" in unrated.out
    loop.llmops("feedback", "open", "votes.yaml")
    votes = _rate_campaign(loop, "docs-gate")
    decided = loop.llmops("gate", "check", "rated.yaml", "--json")
    decision = json.loads(decided.out)
    assert decision["verdict"] == "PASS"
    assert decision["ratings"]["n_votes"] == len(votes)
    assert {c["metric"] for c in decision["checks"]} == {"rougeL", "win_rate", "both_bad"}

    refused = loop.llmops("release", "promote", NAME, check=False)
    assert refused.code == 3
    assert "0 of 1 approvals" in refused.err
    loop.llmops("approve", "--as", "eve")
    assert f"docs -> {second}" in loop.llmops("release", "promote", NAME).out
    assert loop.answered_by(NAME, "add 3") == second[5:]
    assert json.loads((loop.root / ".llmops/serve.json").read_text())["pid"] == pid  # loaded hot
    assert f"{len(seen) + len(votes)} ratings agree" in loop.llmops("ledger", "verify").out
    _require_chain(loop, champion, second, seen)


def _gate_rows(loop: Loop) -> list[dict[str, Any]]:
    return _lines(next((loop.root / ".llmops/store/dataset").glob("*/gate.jsonl")))


def _require_chain(loop: Loop, champion: str, second: str, seen: list[Seen]) -> None:
    """From a vote one walks to the release it led to, and from the release back to the vote."""
    number = next(s.number for s in seen if s.chosen is not None)
    forward = json.loads(loop.llmops("lineage", f"#{number}", "--json").out)
    kinds = {node["kind"] for node in forward["downstream"]}
    assert {"preferences", "adapter", "report", "decision", "approval", "release"} <= kinds
    assert any(n["id"].startswith(second[5:]) for n in forward["downstream"] if n["kind"] == "adapter")
    back = json.loads(loop.llmops("lineage", NAME, "--json").out)
    up = {(node["kind"], node["id"]) for node in back["upstream"]}
    assert (forward["node"]["kind"], forward["node"]["id"]) in up
    assert any(kind == "adapter" and digest.startswith(champion[5:]) for kind, digest in up)
    assert {"dataset", "base"} <= {kind for kind, _ in up}
    assert f"adapter {second[5:]} " in loop.llmops("lineage", f"#{number}").out


def test_changed_vote_is_found_and_stops_the_release_that_stood_on_it(loop: Loop) -> None:
    """Runs behind the round above: its champion stands on votes, one of which is turned round."""
    import sqlite3

    database = sqlite3.connect(loop.root / ".llmops/llmops.db")
    row = "number = (SELECT max(number) FROM ratings WHERE choice IN ('left', 'right'))"
    turn = f"UPDATE ratings SET choice = CASE choice WHEN 'left' THEN 'right' ELSE 'left' END WHERE {row}"
    try:
        with database:
            database.execute(turn)
        done = loop.llmops("ledger", "verify", check=False)
        assert done.code == 4
        assert re.search(r"#\d+ was changed", done.err)
        status = json.loads(loop.llmops("status", "--json").out)
        assert "BROKEN" in status["names"][0]["evidence"]
        with database:
            database.execute(turn)
    finally:
        database.close()
    assert "ratings agree" in loop.llmops("ledger", "verify").out
