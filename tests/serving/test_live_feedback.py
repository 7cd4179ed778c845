"""Feedback, captures and the cache where a name's traffic is shared: canary, shadow, cascade and fallback."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmops.capture import Filter, Keyring, captured_pairs, interactions
from llmops.capture.keyring import VARIABLE, new_key
from llmops.records import RolloutEvidence
from tests.serving.gateway import wait_for
from tests.serving.staged import Staged, staged_gateway

PLAN = """\
steps: [0.5, 0.8]
votes: {looks: [20, 40], margin: 0.2}
"""
NEVER_BY_CHANCE = {"sample_frac": 1e-9, "personal_data": "off"}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, new_key())


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Staged]:
    with staged_gateway(tmp_path, capture=NEVER_BY_CHANCE, response_cache={}) as staged:
        yield staged


def say(staged: Staged, **body: Any) -> None:
    answer = staged.client.post(f"{staged.url}/v1/feedback", json=body)
    assert answer.status_code == 201, answer.text


def test_bad_feedback_of_users_aborts_a_live_canary_and_no_request_fails(staged: Staged) -> None:
    champion, canary, _ = staged.adapters
    staged.decided(canary)
    plan = staged.workspace.root / "canary.yaml"
    plan.write_text(PLAN)
    staged.done("rollout", "canary", "docs", "--adapter", "docs1", "--plan", str(plan))
    ledger, n_users = staged.registry.ledger, 0
    while not ledger.events("rollout.aborted"):
        n_users += 1
        assert n_users < 400
        answer = staged.chat(user=f"user{n_users}")
        thumb = "down" if answer.headers["x-llmops-model"] == canary.adapter else "up"
        say(staged, response_id=answer.json()["id"], thumb=thumb)
    evidence = staged.registry.store.get_record(
        RolloutEvidence, ledger.events("rollout.aborted")[0].body["evidence"]
    )
    assert evidence.votes is not None
    assert (evidence.votes.verdict, evidence.votes.n_wins) == ("FAIL", 0)
    wait_for(lambda: staged.chat().headers["x-llmops-model"] == champion.adapter)
    assert {staged.chat(user=f"after{i}").headers["x-llmops-arm"] for i in range(20)} == {"champion"}
    lines = staged.logged()
    assert Counter(line["status"] for line in lines) == {200: len(lines)}
    assert Counter(line["arm"] for line in lines)["canary"] >= 20


def test_request_that_is_shadowed_is_kept_and_gives_a_pair(staged: Staged) -> None:
    champion, _, shadow = staged.adapters
    staged.chat(text="Nobody shadows this.")
    staged.done("rollout", "shadow", "docs", "--adapter", "docs2", "--sample", "1")
    wait_for(lambda: staged.gateway.live.table.names["docs"].plan.shadow)
    whole = staged.chat(text="Which is better?", user="ada").json()["id"]
    streamed = re.findall('"id":"([^"]+)"', staged.chat(text="And now?", stream=True).text)[0]
    systems = (shadow.adapter, champion.adapter)

    def pairs() -> list[Any]:
        engine, ring = staged.registry.ledger.engine, Keyring.of_environment()
        return list(captured_pairs(engine, ring, Filter(asked="docs"), systems))

    wait_for(lambda: len(pairs()) == 2)
    found = {pair.responses[1]: pair for pair in pairs()}
    assert set(found) == {whole, streamed}
    assert found[whole].messages[0].content == "Which is better?"
    for pair in found.values():
        assert pair.answers == (f"said by {shadow.model_name}", f"said by {champion.model_name}")
        assert pair.arms == ("shadow", "champion")
        assert None not in pair.lineages
    assert Counter(line["captured"] for line in staged.logged() if line["arm"] == "champion") == {
        True: 2, False: 1
    }  # fmt: skip


def test_cascades_answer_is_kept_as_the_client_saw_it_and_never_cached(tmp_path: Path) -> None:
    capture = {"sample_frac": 1.0, "personal_data": "off"}
    with staged_gateway(tmp_path, capture=capture, response_cache={}) as staged:
        staged.done("rollout", "cascade", "docs", "--first", "base", "--min-mean-logprob=-0.5")
        wait_for(lambda: staged.gateway.live.table.names["docs"].plan.cascade)
        base = staged.base.model_name
        seen = {}
        for stream in (False, True):
            for logprob in (-0.4, -0.6):
                staged.engine.logprob[base] = logprob
                answer = staged.chat(stream=stream, temperature=0)
                assert "x-llmops-cache" not in answer.headers
                response = re.findall('"id": ?"([^"]+)"', answer.text)[0]
                seen[response] = answer.headers["x-llmops-model"]
        engine, ring = staged.registry.ledger.engine, Keyring.of_environment()
        wait_for(lambda: len(list(interactions(engine, ring))) == 4)
        kept = {one.response: one for one in interactions(engine, ring)}
        names = {staged.base.digest: base, staged.adapters[0].adapter: staged.adapters[0].model_name}
        assert {response: one.adapter for response, one in kept.items()} == seen
        assert {one.answer == f"said by {names[one.adapter]}" for one in kept.values()} == {True}


def test_answer_of_a_fallback_is_not_kept_under_the_name_that_failed(staged: Staged) -> None:
    champion = staged.adapters[0]
    staged.done("rollout", "fallback", "docs", "--to", "base")
    wait_for(lambda: staged.gateway.live.table.names["docs"].plan.fallback)
    staged.engine.failing.add(champion.model_name)
    fallen = staged.chat(temperature=0)
    assert (fallen.headers["x-llmops-arm"], fallen.headers["x-llmops-cache"]) == ("fallback", "miss")
    staged.engine.failing.clear()
    whole = [staged.chat(temperature=0) for _ in range(2)]
    assert [answer.headers["x-llmops-cache"] for answer in whole] == ["miss", "hit"]
    assert {answer.headers["x-llmops-model"] for answer in whole} == {champion.adapter}
    assert whole[1].headers["x-llmops-arm"] == "champion"
