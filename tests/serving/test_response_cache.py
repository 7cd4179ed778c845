"""The response cache through HTTP: what the engine is not asked again, and when it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmops.serving.profile import ResponseCacheSettings
from llmops.serving.request_log import Entry
from llmops.serving.requests import check
from llmops.serving.response_cache import ResponseCache
from tests.serving.bare import Bare, bare_gateway, profile_of, table_of, target

GREEDY: dict[str, Any] = {"temperature": 0}


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    with bare_gateway(tmp_path, table_of(docs="docs", other="other"), response_cache={}) as bare:
        yield bare


def how(answer: httpx.Response) -> str | None:
    assert answer.status_code == 200, answer.text
    return answer.headers.get("x-llmops-cache")


def without_id(text: str) -> str:
    return re.sub(r'"id":"[^"]+"', "", text)


def test_same_deterministic_request_is_answered_without_the_engine(bare: Bare) -> None:
    first, again = bare.chat(**GREEDY), bare.chat(**GREEDY, user="bob", metadata={"n": 1})
    assert (how(first), how(again)) == ("miss", "hit")
    assert len(bare.engine.asked) == 1
    assert without_id(first.text.replace('"id": ', '"id":')) == without_id(
        again.text.replace('"id": ', '"id":')
    )
    assert again.headers["x-llmops-model"] == target("docs").digest
    assert again.headers["age"] == "0"
    lines = bare.logged()
    assert [line["cache"] for line in lines] == ["miss", "hit"]
    assert lines[1]["n_completion_tokens"] == lines[0]["n_completion_tokens"] == 3
    metrics = bare.client.get(f"{bare.url}/metrics").text
    counted = re.findall(r'llmops_cached_answers_total{.*result="(\w+)"} (\S+)', metrics)
    assert dict(counted) == {"hit": "1.0", "miss": "1.0"}


def test_hit_is_a_response_of_its_own_that_takes_feedback(bare: Bare) -> None:
    ids = [bare.chat(**GREEDY).json()["id"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(one.startswith("chatcmpl-") for one in ids)
    said = bare.client.post(f"{bare.url}/v1/feedback", json={"response_id": ids[2], "thumb": "up"})
    assert said.status_code == 201
    assert said.json()["adapter"] == target("docs").digest


def test_stream_is_replayed_event_by_event(bare: Bare) -> None:
    first, again = bare.chat(**GREEDY, stream=True), bare.chat(**GREEDY, stream=True)
    assert (how(first), how(again)) == ("miss", "hit")
    assert again.headers["content-type"].startswith("text/event-stream")
    assert without_id(first.text) == without_id(again.text)
    assert again.text.endswith("data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in again.text.splitlines() if line.startswith("data: {")]
    assert len({event["id"] for event in events}) == 1
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == "one two three"
    assert how(bare.chat(**GREEDY)) == "miss"  # a stream is no whole answer
    asked = {"stream_options": {"include_usage": True}}
    with_usage = bare.chat(**GREEDY, stream=True, **asked)
    assert how(with_usage) == "miss"
    assert '"usage":{' in with_usage.text
    assert '"usage":{' not in again.text


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.7}, {"temperature": None}, {"temperature": False}, {"seed": None}]
)
def test_request_that_may_be_answered_otherwise_is_not_looked_up(bare: Bare, fields: dict[str, Any]) -> None:
    assert [how(bare.chat(**fields)) for _ in range(2)] == [None, None]
    assert len(bare.engine.asked) == 2


def test_seed_is_deterministic_and_part_of_the_request(bare: Bare) -> None:
    hot = {"temperature": 0.9}
    answers = [how(bare.chat(**hot, seed=seed)) for seed in (1, 1, 2)]
    assert answers == ["miss", "hit", "miss"]


@pytest.mark.parametrize(
    "changed",
    [
        {"text": "Other."},
        {"max_tokens": 9},
        {"stop": ["."]},
        {"model": "other"},
        {"n": 2},
        {"logprobs": True},
    ],
)
def test_any_other_request_is_another(bare: Bare, changed: dict[str, Any]) -> None:
    bare.chat(**GREEDY)
    assert how(bare.chat(**{**GREEDY, **changed})) == "miss"


def test_name_that_moved_gives_no_old_answer_and_one_that_moved_back_does(bare: Bare) -> None:
    bare.chat(**GREEDY)
    bare.gateway.live.table = table_of(docs="new")
    moved = bare.chat(**GREEDY)
    assert (how(moved), moved.headers["x-llmops-model"]) == ("miss", target("new").digest)
    bare.gateway.live.table = table_of(docs="docs")
    assert how(bare.chat(**GREEDY)) == "hit"


def test_name_that_does_not_serve_is_not_answered_from_the_cache(bare: Bare) -> None:
    bare.chat(**GREEDY)
    bare.gateway.live.table = bare.gateway.live.table.with_down("the engine is away")
    assert bare.chat(**GREEDY).status_code == 503


def test_client_may_ask_for_a_new_answer(bare: Bare) -> None:
    bare.chat(**GREEDY)
    fresh = bare.chat(**GREEDY, headers={"Cache-Control": "no-cache"})
    assert (how(fresh), len(bare.engine.asked)) == (None, 2)


def test_failed_and_broken_answers_are_not_kept(bare: Bare) -> None:
    from aiohttp import web

    async def reply(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            return web.json_response({"message": "no"}, status=400)
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(
            b'data: {"id":"chatcmpl-x","choices":[{"index":0,"delta":{"content":"half"}}]}\n\n'
        )
        assert request.transport is not None
        request.transport.close()
        return answer

    bare.engine.reply = reply
    for stream in (False, True):
        bare.chat(**GREEDY, stream=stream)
    bare.engine.reply = None
    assert [how(bare.chat(**GREEDY, stream=stream)) for stream in (False, True)] == ["miss", "miss"]


def test_without_the_block_nothing_is_kept(tmp_path: Path) -> None:
    with bare_gateway(tmp_path) as bare:
        assert [how(bare.chat(**GREEDY)) for _ in range(2)] == [None, None]
        assert "llmops_response_cache" not in bare.client.get(f"{bare.url}/metrics").text


def test_tenant_that_is_not_named_is_not_looked_up(tmp_path: Path) -> None:
    with bare_gateway(tmp_path, response_cache={"tenants": ["acme"]}) as bare:
        assert [how(bare.chat(**GREEDY)) for _ in range(2)] == [None, None]


def test_tenants_never_share_an_answer() -> None:
    cache = ResponseCache(ResponseCacheSettings())
    body = {"model": "docs", "messages": [{"role": "user", "content": "Hi."}], **GREEDY}
    call = check(body, True, profile_of().limits)
    keys = {cache.key_of(call, target("docs"), tenant) for tenant in ("acme", "globex", "acme")}
    assert len(keys) == 2


def filled(cache: ResponseCache, number: int, n_bytes: int) -> bytes:
    key = number.to_bytes(4, "big")
    pending = cache.pending(key, "d")
    pending.add(b"x" * n_bytes)
    entry = Entry("r", "/", 0.0, answered_by="d", response_id=f"chatcmpl-{number}")
    cache.put(pending, entry, streamed=False)
    return key


def test_memory_and_age_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("llmops.serving.response_cache.time.monotonic", lambda: clock[0])
    cache = ResponseCache(ResponseCacheSettings(max_bytes=64 * 1024, max_age_s=10))
    keys = [filled(cache, i, 4000) for i in range(40)]
    assert cache.n_bytes <= 64 * 1024
    assert (len(cache), cache.n_evicted) == (64 * 1024 // 4600, 40 - 64 * 1024 // 4600)
    assert cache.find(keys[0]) is None
    assert cache.find(keys[-1]) is not None
    assert cache.find(filled(cache, 99, 9000)) is None  # over an eighth of the room
    clock[0] = 10.5
    n_before = len(cache)
    assert cache.find(keys[-1]) is None
    assert len(cache) == n_before - 1
    for key in keys:
        cache.find(key)
    assert (len(cache), cache.n_bytes) == (0, 0)
