"""The OpenAPI document says what is served, and no request it allows makes the gateway fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from llmops.serving.app import METHODS
from llmops.serving.openapi import document
from tests.serving.bare import Bare, bare_gateway


@cache
def schema() -> Any:
    """The document as schemathesis reads it, which is imported where it is used: all workers read this file."""
    import schemathesis

    return schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    with bare_gateway(tmp_path_factory.mktemp("openapi"), timeouts={"answer_s": 5}) as bare:
        yield bare


def test_document_has_every_path_and_no_other(bare: Bare) -> None:
    served = httpx.get(f"{bare.url}/openapi.json").json()
    assert served == document()
    described = {(path, method.upper()) for path, item in served["paths"].items() for method in item}
    assert described == {*METHODS.items(), ("/v1/models/{model}", "GET")}


def test_document_is_openapi() -> None:
    schema().validate()


def test_every_reference_leads_somewhere() -> None:
    found = set(re.findall(r"'#/components/schemas/(\w+)'", str(document())))
    assert found == document()["components"]["schemas"].keys()


def _ask_all(bare: Bare, path: str, n_examples: int) -> None:
    """Schemathesis' requests, right ones and wrong ones: no 5xx, nothing that is not in the document.

    One 5xx is an answer and no failure: the 504 of a deadline the request itself set.
    """
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode

    (method,) = document()["paths"][path]
    operation = schema()[path][method.upper()]
    for mode in tuple(GenerationMode) if method == "post" else (GenerationMode.POSITIVE,):

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=n_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        def check(case: Any) -> None:
            response = case.call(base_url=bare.url)
            late = response.status_code == 504 and "x-llmops-deadline-s" in (case.headers or {})
            assert late or response.status_code < 500, response.text
            operation.validate_response(response)

        check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted(document()["paths"]))
def test_no_request_makes_the_gateway_fail(bare: Bare, path: str) -> None:
    _ask_all(bare, path, 6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted(document()["paths"]))
def test_none_of_many_requests_makes_the_gateway_fail(bare: Bare, path: str) -> None:
    _ask_all(bare, path, 400)


def test_embeddings_pass_through_where_the_engine_has_them(tmp_path: Path) -> None:
    with bare_gateway(tmp_path) as bare:
        body = {"model": "docs", "input": ["a", "b"]}
        missing = httpx.post(f"{bare.url}/v1/embeddings", json=body)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unsupported_endpoint")

        async def app() -> str:
            async def reply(request: web.Request) -> web.Response:
                asked = await request.json()
                row = {"object": "embedding", "index": 0, "embedding": [0.5]}
                usage = {"prompt_tokens": 2, "total_tokens": 2}
                return web.json_response({"model": asked["model"], "data": [row], "usage": usage})

            application = web.Application()
            application.router.add_post("/v1/embeddings", reply)
            runner = web.AppRunner(application)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return f"http://127.0.0.1:{runner.addresses[0][1]}"

        bare.gateway.live.side.url = bare.run(app())
        answer = httpx.post(f"{bare.url}/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"][0]["embedding"] == [0.5]
        assert answer.json()["model"] == "docs"
        assert bare.logged()[-1]["n_prompt_tokens"] == 2
        for wrong in (
            {"model": "docs"},
            {"model": "docs", "input": []},
            {"model": "docs", "input": ["x"] * 129},
        ):
            refused = httpx.post(f"{bare.url}/v1/embeddings", json=wrong)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
