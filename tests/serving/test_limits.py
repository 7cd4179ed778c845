"""How much a key may use: closed forms of buckets, and the answers of a gateway that holds a key to them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops.auth import KeyLimits
from llmops.serving.limits import Bucket
from tests.serving.gateway import wait_for
from tests.serving.keyed import Keyed, keyed_gateway

N_ANSWER = 3  # tokens of the scripted engine's answer
N_PROMPT = 7


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes for the buckets."""
    monkeypatch.setattr("llmops.serving.limits.monotonic", lambda: 1000.0)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with keyed_gateway(tmp_path_factory.mktemp("keyed")) as keyed:
        yield keyed


@settings(max_examples=200, deadline=None)
@given(
    capacity=st.integers(20, 1000),
    asks=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 20)), max_size=60),
)
def test_bucket_never_gives_more_than_it_holds_and_what_flowed_in(
    capacity: int, asks: list[tuple[float, int]]
) -> None:
    bucket, at, given_out = Bucket(float(capacity), float(capacity), 0.0), 0.0, 0
    for pause_s, n in asks:
        at += pause_s
        wait_s = bucket.wait_s(n, at)
        if not wait_s:
            bucket.level -= n
            given_out += n
        else:
            again = Bucket(bucket.capacity, bucket.level, bucket.at)
            assert again.wait_s(n, at + wait_s + 1e-6) == 0
            assert wait_s < 1e-6 or again.wait_s(n, at) > 0
    assert given_out <= capacity + capacity * at / 60 + 1e-6


def test_requests_over_the_minute_s_limit_are_told_when_to_come_again(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed.add("slow", KeyLimits(requests_per_minute=3))
    n_asked = len(keyed.bare.engine.asked)
    answers = [keyed.chat("slow") for _ in range(5)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
    assert len(keyed.bare.engine.asked) == n_asked + 3
    refused = answers[-1]
    assert refused.headers["retry-after"] == "20"  # a third of a minute
    assert refused.json()["error"] == {
        "message": "the key's limit of 3 requests a minute is reached",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert keyed.chat("docs").status_code == 200  # nobody else waits
    assert keyed.bare.logged()[-2]["status"] == 429
    monkeypatch.setattr("llmops.serving.limits.monotonic", lambda: 1020.0)
    assert [keyed.chat("slow").status_code for _ in range(2)] == [200, 429]


def test_answers_tell_what_a_key_has_left_in_the_headers_that_openai_s_clients_know(keyed: Keyed) -> None:
    keyed.add("told", KeyLimits(requests_per_minute=3, tokens_per_minute=600))
    reserved = 1 + len(httpx.Request("POST", "http://x", json=_body(max_tokens=1)).content) // 4
    first, *_, refused = [keyed.chat("told", max_tokens=1) for _ in range(4)]
    assert _left(first) == {
        "limit-requests": "3", "remaining-requests": "2", "reset-requests": "20s",
        "limit-tokens": "600", "remaining-tokens": str(600 - reserved),
        "reset-tokens": f"{math.ceil(reserved / 10)}s",
    }  # fmt: skip
    assert refused.status_code == 429
    assert {name: value for name, value in _left(refused).items() if "requests" in name} == {
        "limit-requests": "3", "remaining-requests": "0", "reset-requests": "1m0s",
    }  # fmt: skip
    assert _left(keyed.chat("docs")) == {}


def test_tokens_over_the_minute_s_limit_are_refused_once_they_were_used(keyed: Keyed) -> None:
    keyed.add("terse", KeyLimits(tokens_per_minute=60))
    statuses = [keyed.chat("terse", max_tokens=1).status_code for _ in range(8)]
    n_done = statuses.count(200)
    # Every answer used 10; one more is let through while what it may need is there.
    assert statuses == [200] * n_done + [429] * (8 - n_done)
    body_tokens = len(httpx.Request("POST", "http://x", json=_body(max_tokens=1)).content) // 4
    assert n_done == 1 + math.floor((60 - body_tokens - 1) / (N_PROMPT + N_ANSWER))


def test_many_at_once_cannot_overdraw_the_tokens_of_a_minute(keyed: Keyed) -> None:
    keyed.add("crowd", KeyLimits(tokens_per_minute=1000))
    keyed.bare.engine.chunk_s = 0.3
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(keyed.chat("crowd", max_tokens=200).status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        keyed.bare.engine.chunk_s = 0.0
    reserved = 200 + len(httpx.Request("POST", "http://x", json=_body(max_tokens=200)).content) // 4
    assert statuses.count(200) == 1000 // reserved == 4
    assert statuses.count(429) == 8


def test_what_was_set_aside_and_not_used_is_given_back(keyed: Keyed) -> None:
    keyed.add("eager", KeyLimits(tokens_per_minute=1000))
    for _ in range(20):  # 20 x 900 set aside, 20 x 10 used
        assert keyed.chat("eager", max_tokens=700).status_code == 200
    account = keyed.bare.gateway.access.limits.accounts
    key = next(k.id for k in keyed.keys.list() if k.name == "eager")
    wait_for(lambda: account[key].n_running == 0)


def test_request_larger_than_the_whole_bucket_is_let_through_when_it_is_full(keyed: Keyed) -> None:
    keyed.add("small", KeyLimits(tokens_per_minute=50))
    assert [keyed.chat("small", max_tokens=5000).status_code for _ in range(2)] == [200, 429]


def test_quota_of_a_day_ends_at_midnight_utc(keyed: Keyed) -> None:
    keyed.add("daily", KeyLimits(tokens_per_day=25))
    assert [keyed.chat("daily", max_tokens=1).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = keyed.chat("daily")
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    assert abs(int(refused.headers["retry-after"]) - (midnight - now).total_seconds()) < 30
    assert refused.json()["error"]["code"] == "insufficient_quota"


def test_quota_outlives_the_gateway_and_the_day_does_not_outlive_itself(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path_factory.mktemp("again")
    day = ["2030-01-01"]
    for module in ("limits", "usage", "access"):
        monkeypatch.setattr(f"llmops.serving.{module}.today", lambda: day[0])
    with keyed_gateway(root) as first:
        first.add("daily", KeyLimits(tokens_per_day=20))
        token = first.tokens["daily"]
        assert [first.chat("daily").status_code for _ in range(3)] == [200, 200, 429]
    with keyed_gateway(root) as second:
        second.tokens["daily"] = token
        assert second.chat("daily").status_code == 429
        day[0] = "2030-01-02"
        assert second.chat("daily").status_code == 200


def test_client_that_leaves_a_stream_before_its_end_still_pays_for_what_it_got(keyed: Keyed) -> None:
    key = keyed.add("leaver", KeyLimits(tokens_per_minute=100_000))
    engine = keyed.bare.engine
    engine.words, engine.chunk_s = tuple(f" {i}" for i in range(200)), 0.005
    try:
        with keyed.bare.client.stream(
            "POST",
            f"{keyed.bare.url}/v1/chat/completions",
            json={**_body(), "stream": True},
            headers=keyed.headers("leaver"),
        ) as answer:
            lines = (line for line in answer.iter_lines() if line)
            for _ in range(40):
                next(lines)
        wait_for(lambda: [x for x in keyed.bare.logged() if x["key"] == key])
    finally:
        engine.words, engine.chunk_s = ("one", " two", " three"), 0.0
    line = next(x for x in keyed.bare.logged() if x["key"] == key)
    assert (line["status"], line["n_completion_tokens"]) == (499, None)
    keyed.bare.run(keyed.bare.gateway.access.usage.flush())
    from llmops.db import open_database
    from llmops.serving.spending import spent

    (row,) = [r for r in spent(open_database(keyed.bare.workspace.database_url), "key") if r.what == key]
    assert (row.n_requests, row.n_estimated) == (1, 1)
    assert 40 <= row.n_completion_tokens < 200
    assert (
        row.n_prompt_tokens
        == len(httpx.Request("POST", "http://x", json={**_body(), "stream": True}).content) // 4
    )


def _body(**fields: object) -> dict[str, object]:
    return {"model": "docs", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 8, **fields}


def _left(answer: httpx.Response) -> dict[str, str]:
    start = "x-ratelimit-"
    return {n.removeprefix(start): v for n, v in answer.headers.items() if n.startswith(start)}
