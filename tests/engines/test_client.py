"""The control client against the real embedded engine; the oracle is a plain forward pass of PEFT."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from llmops.engines.client import EngineClient
from llmops.errors import BadRequest, EngineFailed
from tests.engines.embedded_child import BASE_NAME, Running, running_here
from tests.engines.scoring import teacher_forced

TEXTS = ((104, 101, 108, 108, 111), (119, 111, 114, 108, 100, 33, 33), (97, 98))


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Running]:
    with running_here(tiny_model, ["--max-loras", "2"]) as engine:
        yield engine


@pytest.fixture
async def client(engine: Running) -> AsyncIterator[EngineClient]:
    async with EngineClient(engine.url) as client:
        yield client


async def test_prompt_logprobs_are_the_forward_passes(
    client: EngineClient, tiny_model: Path, tiny_adapter: Path
) -> None:
    await client.load_adapter("docs@111111111111", tiny_adapter)
    assert await client.models() == [BASE_NAME, "docs@111111111111"]
    for name, adapter in ((BASE_NAME, None), ("docs@111111111111", tiny_adapter)):
        rows = await client.prompt_logprobs(name, TEXTS)
        for row, expected in zip(rows, teacher_forced(tiny_model, adapter, TEXTS), strict=True):
            assert row == pytest.approx(expected, abs=1e-4)
    with pytest.raises(BadRequest, match=r"docs@111111111111"):
        await client.load_adapter("docs@111111111111", tiny_adapter)
    await client.unload_adapter("docs@111111111111")
    assert await client.models() == [BASE_NAME]


async def test_what_the_caller_got_wrong_comes_back_as_such(client: EngineClient, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"404.*nobody"):
        await client.prompt_logprobs("nobody", TEXTS)
    with pytest.raises(BadRequest, match=r"400.*vocabulary"):
        await client.prompt_logprobs(BASE_NAME, [(1, 999_999)])
    with pytest.raises(BadRequest, match="context length"):
        await client.prompt_logprobs(BASE_NAME, [(1,) * 5000])
    with pytest.raises(BadRequest, match="two tokens or more"):
        await client.prompt_logprobs(BASE_NAME, [(1, 2), (3,)])
    with pytest.raises(BadRequest, match=r"has no adapter_config\.json"):
        await client.load_adapter("docs@222222222222", tmp_path)
    with pytest.raises(BadRequest, match="404"):
        await client.unload_adapter("docs@333333333333")


async def test_an_adapter_the_engine_cannot_load_is_refused_with_its_reason(
    client: EngineClient, tiny_adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text((tiny_adapter / "adapter_config.json").read_text())
    with pytest.raises((BadRequest, EngineFailed), match=r"load_lora_adapter answered \d+: ."):
        await client.load_adapter("docs@444444444444", tmp_path)
    assert await client.models() == [BASE_NAME]


async def test_an_engine_that_is_gone_says_nothing_about_the_request() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with EngineClient(f"http://127.0.0.1:{nobody.getsockname()[1]}") as client:
            assert not await client.healthy()
            with pytest.raises(EngineFailed, match="was not answered"):
                await client.version()


async def test_a_live_engine_is_healthy_and_tells_its_version(client: EngineClient) -> None:
    import transformers

    assert await client.healthy()
    assert await client.version() == transformers.__version__


def echo(rows: list[list[float | None]], model: str = BASE_NAME) -> dict[str, Any]:
    choices = [{"index": i, "logprobs": {"token_logprobs": row}} for i, row in enumerate(rows)]
    return {"model": model, "choices": choices}


@pytest.mark.parametrize(
    "body",
    [
        echo([[None, -1.0]]),  # a row is missing
        echo([[None, -1.0], [None]]),  # a row is short
        echo([[None, -1.0], [None, None]]),
        echo([[None, -1.0], [None, float("nan")]]),
        echo([[None, -1.0], [None, -1.0]], model="another"),
        {"model": BASE_NAME, "choices": [{"index": 0, "logprobs": None}, {"index": 1, "logprobs": None}]},
        {"detail": "nothing like it"},
        "words",
    ],
)
async def test_an_answer_of_another_shape_is_never_taken_for_numbers(body: Any) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(body)

    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        async with EngineClient(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(EngineFailed, match="no log-probabilities"):
                await client.prompt_logprobs(BASE_NAME, [(1, 2), (3, 4)])
    finally:
        await runner.cleanup()


async def test_rows_come_back_in_the_order_they_were_asked_in() -> None:
    async def answer(_: web.Request) -> web.Response:
        body = echo([[None, -1.0, 0.0], [None, -2.0, -3.0, 0.0]])
        body["choices"].reverse()  # nothing in the API promises an order
        return web.json_response(body)

    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with EngineClient(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            rows = await client.prompt_logprobs(BASE_NAME, [(1, 2), (3, 4, 5)])
    finally:
        await runner.cleanup()
    assert rows == [[-1.0], [-2.0, -3.0]]  # one generated token at the end, as some servers add, is cut
