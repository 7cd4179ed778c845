"""What the relay does to bytes, without an engine."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from llmops.records import PromptContract
from llmops.serving.exchange import Exchange, engine_refusal
from llmops.serving.http import Refusal
from llmops.serving.profile import Limits
from llmops.serving.request_log import Entry, RequestLog
from llmops.serving.requests import check, for_engine
from llmops.serving.routes import Target

NAME = "docs@0123456789ab"
CONTRACT = PromptContract("template", "0" * 64, (2,), "Be brief.")
TARGET = Target(NAME, "d" * 64, CONTRACT, "e" * 64)


class Sent(list[dict[str, Any]]):
    """What an ASGI server was given."""

    async def __call__(self, message: Any) -> None:
        self.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [m["body"] for m in self if m["type"] == "http.response.body" and m["body"]]


def exchange(**fields: Any) -> tuple[Exchange, Entry, Sent]:
    body = {"model": "docs", "messages": [{"role": "user", "content": "Hi"}], "stream": True, **fields}
    entry, sent = Entry("r", "/v1/chat/completions", time.perf_counter()), Sent()
    return Exchange(check(body, True, Limits()), TARGET, entry, [], sent), entry, sent


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


async def test_events_cut_anywhere_arrive_whole_and_renamed() -> None:
    text = 'he said "model":"' + NAME + '" and data: x\\n\n'
    events = [event(id=i, model=NAME, choices=[{"delta": {"content": text}}]) for i in range(3)]
    stream = b"".join(events) + b"data: [DONE]\n\n"
    shown = [event(id=i, model="docs", choices=[{"delta": {"content": text}}]) for i in range(3)]
    for size in (1, 7, 64, len(stream)):
        under_test, _, sent = exchange()
        for start in range(0, len(stream), size):
            await under_test.relay(stream[start : start + size])
        assert b"".join(sent.bodies) == b"".join(shown) + b"data: [DONE]\n\n"
        assert all(body.endswith(b"\n\n") for body in sent.bodies)


async def test_whole_event_is_passed_on_without_waiting_for_the_next() -> None:
    under_test, entry, sent = exchange()
    await under_test.relay(event(model=NAME, choices=[]) + b"data: {")
    assert sent.bodies == [event(model="docs", choices=[])]
    assert entry.ttft_ms is not None


async def test_text_that_speaks_of_usage_and_errors_is_not_taken_for_them() -> None:
    under_test, entry, sent = exchange()
    said = event(model=NAME, choices=[{"delta": {"content": '{"usage": {"prompt_tokens": 9}, "error": {}}'}}])
    await under_test.relay(said)
    assert sent.bodies == [said.replace(NAME.encode(), b"docs")]
    assert (entry.n_prompt_tokens, entry.error) == (None, None)


async def test_error_inside_a_stream_reaches_the_log() -> None:
    under_test, entry, sent = exchange()
    await under_test.relay(event(error={"message": "the step failed", "code": 500}))
    assert entry.error == "the step failed"
    assert len(sent.bodies) == 1


def test_contract_s_system_prompt_is_put_where_the_conversation_has_none() -> None:
    bare = {"model": "docs", "messages": [{"role": "user", "content": "Hi"}]}
    own = {
        "model": "docs",
        "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}],
    }
    sent = [json.loads(for_engine(check(dict(body), True, Limits()), TARGET)) for body in (bare, own)]
    assert sent[0]["messages"] == [{"role": "system", "content": "Be brief."}, *bare["messages"]]
    assert sent[1]["messages"] == own["messages"]
    assert {body["model"] for body in sent} == {NAME}


def test_completions_get_no_system_prompt() -> None:
    call = check({"model": "docs", "prompt": "Hi"}, False, Limits())
    assert json.loads(for_engine(call, TARGET)) == {"model": NAME, "prompt": "Hi"}


def test_as_many_prompts_as_the_limit_and_no_more() -> None:
    check({"model": "m", "prompt": ["a"] * 128}, False, Limits())
    check({"model": "m", "prompt": [1] * 1000}, False, Limits())
    with pytest.raises(Refusal, match="at most 128"):
        check({"model": "m", "prompt": ["a"] * 129}, False, Limits())


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (400, b'{"error":{"message":"no","type":"BadRequestError","param":"n","code":400}}', 400),
        (400, b'{"object":"error","message":"no","code":400}', 400),
        (503, b"busy", 503),
        (500, b'{"error":{"message":"no"}}', 502),
        (404, b'{"error":{"message":"no"}}', 502),
    ],
)
def test_refusal_of_the_engine_takes_openai_s_shape(status: int, body: bytes, shown: int) -> None:
    refusal = engine_refusal(status, body)
    error = json.loads(refusal.body())["error"]
    assert refusal.status == shown
    assert error.keys() == {"message", "type", "param", "code"}
    assert "no" in error["message"] or status == 503


async def test_log_keeps_lines_through_a_disk_that_does_not_take_them(tmp_path: Any) -> None:
    path = tmp_path / "logs" / "requests.jsonl"
    path.mkdir(parents=True)  # a folder in the file's place: every write fails
    log = RequestLog(path)
    log.add(Entry("one", "/v1/completions", time.perf_counter()))
    await log.stop()
    path.rmdir()
    log.add(Entry("two", "/v1/completions", time.perf_counter()))
    await log.stop()
    assert [json.loads(line)["request_id"] for line in path.read_text().splitlines()] == ["one", "two"]
    assert log.n_lost == 0
