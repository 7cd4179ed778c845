"""`llmops batch`: every request gets one row whatever happens in between, and gives way to other traffic."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.in_process import llmops
from tests.serving.bare import Bare, bare_gateway
from tests.serving.gateway import wait_for


def write_requests(path: Path, ids: Iterable[str], **fields: Any) -> Path:
    rows = [
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "docs", "messages": [{"role": "user", "content": custom_id}], **fields},
        }
        for custom_id in ids
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows)
    assert all(row.keys() == {"id", "custom_id", "response", "error"} for row in rows)
    return {row["custom_id"]: row for row in rows}


def said(bare: Bare) -> list[str]:
    return [body["messages"][-1]["content"] for body in bare.engine.asked]


def test_every_request_gets_its_row_at_low_priority(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", ["a", "b"])
    with source.open("a") as file:
        row = {
            "custom_id": "c",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "gone", "prompt": "x"},
        }
        file.write(json.dumps(row) + "\n\n")
    with bare_gateway(tmp_path) as bare:
        done = llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", bare.url + "/v1")
        assert done.code == 0, done.err
        assert "answered 2 of 3 requests" in done.out
        rows = rows_of(tmp_path / "out.jsonl")
        assert rows["a"]["response"]["body"]["choices"][0]["message"]["content"] == "one two three"
        assert rows["a"]["response"]["status_code"] == 200
        assert rows["a"]["response"]["request_id"] in {line["request_id"] for line in bare.logged()}
        assert rows["c"]["response"]["status_code"] == 404
        assert rows["c"]["response"]["body"]["error"]["code"] == "model_not_found"
        assert rows["c"]["error"] is None
        again = llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", bare.url)
        assert again.code == 0
        assert sorted(said(bare)) == ["a", "b"]  # nothing was asked twice


def test_batch_takes_no_more_places_than_low_priority_has(tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", [str(i) for i in range(12)])
    with bare_gateway(tmp_path, limits={"max_requests": 8, "max_low_priority": 2}) as bare:
        highest, admission = 0, bare.gateway.relay.admission

        async def reply(_request: Any, body: dict[str, Any]) -> Any:
            nonlocal highest
            highest = max(highest, admission.n_running)
            return await bare.engine._whole(body)

        bare.engine.reply, bare.engine.chunk_s = reply, 0.01
        assert llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", bare.url).code == 0
        assert highest == 2
        assert len(rows_of(tmp_path / "out.jsonl")) == 12


def test_killed_batch_goes_on_where_it_stopped(tmp_path: Path) -> None:
    ids = [str(i) for i in range(40)]
    write_requests(tmp_path / "in.jsonl", ids)
    out = tmp_path / "out.jsonl"
    with bare_gateway(tmp_path) as bare:
        bare.engine.chunk_s = 0.02
        command = [sys.executable, "-m", "llmops.cli", "batch", "in.jsonl", "out.jsonl", "--url", bare.url]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.Popen([*command, "--concurrency", "4"], cwd=tmp_path, env=environment)
        wait_for(lambda: out.is_file() and out.read_text().count("\n") >= 8)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with out.open("a") as file:
            file.write('{"id":"batch_req_0","custom_id":"3')  # what a kill in the middle of a write leaves
        n_before = out.read_text().count("\n")
        assert 8 <= n_before < 40
        bare.engine.asked.clear()
        bare.engine.chunk_s = 0.0
        assert llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", bare.url).code == 0
        assert rows_of(out).keys() == set(ids)
        assert len(said(bare)) == 40 - n_before


def test_busy_endpoint_is_asked_again(tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", ["a"])
    with bare_gateway(tmp_path) as bare:
        from aiohttp import web

        answers = iter([(429, "0"), (503, "0")])

        async def reply(_request: Any, body: dict[str, Any]) -> Any:
            status, wait = next(answers, (200, ""))
            if status == 200:
                return await bare.engine._whole(body)
            return web.json_response(
                {"error": {"message": "busy"}}, status=status, headers={"retry-after": wait}
            )

        bare.engine.reply = reply
        assert llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", bare.url).code == 0
        assert len(said(bare)) == 3
        assert rows_of(tmp_path / "out.jsonl")["a"]["response"]["status_code"] == 200


def test_failed_rows_are_asked_again_on_request(tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", ["a", "b"])
    with bare_gateway(tmp_path) as bare:
        from aiohttp import web

        async def reply(_request: Any, body: dict[str, Any]) -> Any:
            if body["messages"][-1]["content"] == "b":
                return web.json_response({"error": {"message": "no"}}, status=500)
            return await bare.engine._whole(body)

        bare.engine.reply = reply
        done = llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", bare.url)
        assert "1 failed" in done.out
        assert rows_of(tmp_path / "out.jsonl")["b"]["response"]["status_code"] == 502
        bare.engine.reply = None
        done = llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", bare.url, "--retry-failed")
        assert "answered 2 of 2" in done.out
        assert rows_of(tmp_path / "out.jsonl")["b"]["response"]["status_code"] == 200
        assert sorted(said(bare)) == ["a", "b", "b"]


def test_what_is_not_answered_in_time_expires_as_an_error_row(tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", ["a"])
    done = llmops(
        tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", "http://127.0.0.1:9", "--window-h", "0.0002"
    )  # fmt: skip
    assert done.code == 0, done.err
    row = rows_of(tmp_path / "out.jsonl")["a"]
    assert (row["response"], row["error"]["code"]) == (None, "batch_expired")


@pytest.mark.parametrize(
    ("line", "said_of_it"),
    [
        ("{", "in.jsonl:2: not JSON"),
        ('{"custom_id": "a"}', "in.jsonl:2: give exactly body, custom_id, method, url"),
        (
            '{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {}}',
            "stands in line 1, too",
        ),
        (
            '{"custom_id": "x", "method": "GET", "url": "/metrics", "body": {}}',
            "GET /metrics is no batch request",
        ),
        (
            '{"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"stream": true}}',
            "stream",
        ),
    ],
)
def test_line_that_is_no_request_is_named_before_anything_is_asked(
    tmp_path: Path, line: str, said_of_it: str
) -> None:
    source = write_requests(tmp_path / "in.jsonl", ["1"])
    source.write_text(source.read_text() + line + "\n")
    done = llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", "http://127.0.0.1:9")
    assert done.code == 2
    assert said_of_it in done.err
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_answers_to_other_requests_are_noticed(tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", ["a"])
    with bare_gateway(tmp_path) as bare:
        assert llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", bare.url).code == 0
    write_requests(tmp_path / "in.jsonl", ["a"], max_tokens=9)
    done = llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", "http://127.0.0.1:9")
    assert done.code == 2
    assert "'a' answers another request than line 1 asks" in done.err


def test_key_that_is_not_known_ends_the_batch_before_rows_are_spoilt(tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", ["a", "b"])
    with bare_gateway(tmp_path) as bare:
        assert llmops(tmp_path, "key", "create", "ops", "--role", "operator").code == 0
        wait_for(lambda: bare.chat().status_code == 401)
        done = llmops(tmp_path, "batch", "in.jsonl", "out.jsonl", "--url", bare.url)
        assert done.code == 2
        assert "set LLMOPS_API_KEY" in done.err
        assert (tmp_path / "out.jsonl").read_text() == ""


def test_endpoint_must_be_named_where_nothing_serves(tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", ["a"])
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    done = llmops(tmp_path, "batch", "in.jsonl", "out.jsonl")
    assert done.code == 2
    assert "give --url" in done.err
