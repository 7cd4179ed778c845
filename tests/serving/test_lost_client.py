"""A client that leaves: the engine must stop working for it, whenever that happens. Seen at the engine itself."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Stage
from tests.serving.gateway import Endpoint, wait_for

SLOTS = 4  # max_num_seqs of the profile
LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 4000, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def idle(endpoint: Endpoint) -> Iterator[Endpoint]:
    wait_for(lambda: endpoint.load() == (0, 0))
    yield endpoint
    wait_for(lambda: endpoint.load() == (0, 0))


@contextmanager
def asking(endpoint: Endpoint, model: str, stream: bool) -> Iterator[tuple[httpx.Response | None, str]]:
    """A long request under way; leaving the block closes its connection."""
    request_id = uuid.uuid4().hex
    headers = {"x-request-id": request_id}
    body = {"model": model, "stream": stream, **LONG}
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=endpoint.url, timeout=60))
        if not stream:
            # The bytes of the request alone, so that the connection can be dropped while nothing has come back.
            import socket

            host, port = endpoint.url.removeprefix("http://").split(":")
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            request = client.build_request("POST", "/v1/completions", json=body, headers=headers)
            head = "POST /v1/completions HTTP/1.1\r\n" + "".join(
                f"{k}: {v}\r\n" for k, v in request.headers.items()
            )
            connection.sendall(head.encode() + b"\r\n" + request.content)
            yield None, request_id
        else:
            response = stack.enter_context(
                client.stream("POST", "/v1/completions", json=body, headers=headers)
            )
            yield response, request_id


def test_leaving_while_a_whole_answer_is_made_frees_the_engine(stage: Stage, idle: Endpoint) -> None:
    with asking(idle, stage.base.model_name, stream=False) as (_, request_id):
        wait_for(lambda: idle.load() == (1, 0))
    wait_for(lambda: idle.load() == (0, 0), within_s=5)
    line = idle.logged(request_id)
    assert (line["status"], line["error"], line["stream"]) == (499, "the client left", False)
    assert line["answered_by"] == stage.base.digest


def test_leaving_in_the_middle_of_a_stream_frees_the_engine(stage: Stage, idle: Endpoint) -> None:
    with asking(idle, stage.base.model_name, stream=True) as (response, request_id):
        assert response is not None
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert idle.load() == (1, 0)
    wait_for(lambda: idle.load() == (0, 0), within_s=5)
    line = idle.logged(request_id)
    assert (line["status"], line["stream"]) == (499, True)
    assert line["ttft_ms"] is not None


def test_leaving_before_the_first_token_frees_the_queue(stage: Stage, idle: Endpoint) -> None:
    with ExitStack() as stack:
        for _ in range(SLOTS):
            stack.enter_context(asking(idle, stage.base.model_name, stream=False))
        wait_for(lambda: idle.load() == (SLOTS, 0))
        with asking(idle, stage.base.model_name, stream=False) as (_, request_id):
            wait_for(lambda: idle.load() == (SLOTS, 1))
        wait_for(lambda: idle.load() == (SLOTS, 0), within_s=5)
        line = idle.logged(request_id)
        assert (line["status"], line["ttft_ms"]) == (499, None)
