"""Clients that people have, unchanged: openai (Python, Node), langchain-openai and curl, over both engines.

`scripted` is the gateway before an engine whose answers are known; what only an engine can do is asked of real ones.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from llmops.settings import find_workspace
from tests.serving.bare import bare_gateway
from tests.serving.gateway import serving, write_profile
from tests.tiny import build_tiny_model

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
    "additionalProperties": False,
}  # fmt: skip


@dataclass(frozen=True)
class Served:
    """An endpoint and a model there; `real` when an engine computes."""

    url: str
    model: str
    real: bool

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def ask(self, **fields: Any) -> Any:
        messages = [{"role": "user", "content": "Say something."}]
        body: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": 8, "temperature": 0}
        return self.client().chat.completions.create(**{**body, **fields})


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "scripted":
        with bare_gateway(root) as bare:
            yield Served(bare.url, "docs", False)
        return
    (root / "llmops.yaml").write_text("name: conformance\n")
    if request.param == "embedded":
        profile = write_profile(root, build_tiny_model(root / "model", max_len=512), max_model_tokens=512)
    else:
        from llmops.registry.bases import resolve_base
        from tests.vllm.conftest import DEFAULT_BASE

        engine = {
            "kind": "vllm",
            "dtype": "float32",
            "device": "cpu",
            "python": str(ROOT / ".venv-vllm/bin/python"),
        }
        profile = write_profile(
            root, resolve_base(DEFAULT_BASE).path, engine=engine, max_model_tokens=512, slots=1
        )
    with serving(profile, find_workspace(root)) as endpoint:
        yield Served(endpoint.url, endpoint.status()["base"]["model"], True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Real engines belong to the tiers that start them."""
    if "served" in metafunc.fixturenames:
        marks = {"embedded": pytest.mark.walk, "vllm": [pytest.mark.vllm, pytest.mark.timeout(600)]}
        params = [pytest.param(name, marks=marks.get(name, ())) for name in ("scripted", "embedded", "vllm")]
        metafunc.parametrize("served", params, indirect=True, scope="module")


def real(served: Served) -> Served:
    if not served.real:
        pytest.skip("needs an engine that computes")
    return served


def test_whole_answer_and_stream_say_the_same_and_count_it(served: Served) -> None:
    whole = served.ask()
    chunks = list(served.ask(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert {chunk.model for chunk in chunks} == {whole.model} == {served.model}


def test_errors_are_of_the_client_s_own_kinds(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        served.ask(model="nobody")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        served.ask(n=1000)
    assert refused.value.param == "n"


def test_models_are_listed_and_found_by_name(served: Served) -> None:
    client = served.client()
    assert served.model in {card.id for card in client.models.list()}
    assert client.models.retrieve(served.model).id == served.model


def test_list_type_content_and_completions(served: Served) -> None:
    parts = [{"type": "text", "text": "Say something."}]
    text = served.ask(messages=[{"role": "user", "content": parts}]).choices[0].message.content
    assert text == served.ask().choices[0].message.content
    plain = served.client().completions.create(model=served.model, prompt="Say", max_tokens=4, temperature=0)
    assert plain.choices[0].text
    assert plain.usage is not None


def test_embeddings_are_refused_in_the_client_s_terms_where_there_are_none(served: Served) -> None:
    with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
        served.client().embeddings.create(model=served.model, input="text")


def test_stop_seed_n_and_logprobs(served: Served) -> None:
    ask = real(served).ask
    text = ask(max_tokens=12).choices[0].message.content
    stop = next(c for c in text[3:] if c not in text[:3])
    stopped = ask(max_tokens=12, stop=[stop]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(stop)], "stop")
    drawn = {"temperature": 1, "seed": 7, "n": 3}
    first, second = ([c.message.content for c in ask(**drawn).choices] for _ in range(2))
    assert (len(first), first) == (3, second)
    (choice,) = ask(logprobs=True, top_logprobs=2, max_tokens=3).choices
    assert choice.logprobs is not None
    assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2, 2, 2]
    assert all(token.logprob == token.top_logprobs[0].logprob for token in choice.logprobs.content)


def test_json_schema_is_followed(served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "small", "schema": SMALL, "strict": True}}
    (choice,) = real(served).ask(response_format=form, max_tokens=64).choices
    jsonschema.validate(json.loads(choice.message.content), SMALL)


def test_langchain_asks_and_streams(served: Served) -> None:
    chat_models = pytest.importorskip("langchain_openai", reason="needs langchain-openai")
    model = chat_models.ChatOpenAI(
        base_url=f"{served.url}/v1",
        api_key="none",
        model=served.model,
        temperature=0,
        max_tokens=8,
        max_retries=0,
    )
    whole = model.invoke("Say something.")
    assert whole.content == served.ask().choices[0].message.content
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(piece.content for piece in model.stream("Say something.")) == whole.content


def test_curl_asks_and_streams(served: Served) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    body = {
        "model": served.model,
        "messages": [{"role": "user", "content": "Say something."}],
        "max_tokens": 8,
    }
    url = f"{served.url}/v1/chat/completions"
    words = [
        "curl",
        "--silent",
        "--show-error",
        "--no-buffer",
        "-H",
        "Content-Type: application/json",
        url,
        "-d",
    ]

    def asked(**fields: Any) -> str:
        done = subprocess.run(
            [*words, json.dumps({**body, "temperature": 0, **fields})],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    whole = json.loads(asked())["choices"][0]["message"]["content"]
    events = [line.removeprefix("data: ") for line in asked(stream=True).splitlines() if line]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(pieces) == whole


def test_openai_for_node_asks_streams_and_reads_errors(served: Served) -> None:
    if shutil.which("node") is None or not (ROOT / "node_modules" / "openai").is_dir():
        pytest.skip("needs node, and `npm install --no-save openai` in the repository")
    script = Path(__file__).parent / "conformance.mjs"
    done = subprocess.run(
        ["node", script, served.url, served.model],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    said = json.loads(done.stdout)
    assert said["whole"] == said["text"] == served.ask().choices[0].message.content
    assert said["usage"]["completion_tokens"] > 0
    assert said["refused"] == ["NotFoundError", 404, "model_not_found", "model"]
    assert served.model in said["models"]
    assert said["model"] == served.model
