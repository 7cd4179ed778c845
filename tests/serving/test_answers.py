from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from llmops.schema import digest_of
from tests.serving.conftest import Stage
from tests.serving.gateway import GREEDY, Endpoint


@pytest.fixture(scope="module")
def model(stage: Stage, endpoint: Endpoint) -> str:
    """The operator name of a loaded adapter."""
    response = endpoint.add(stage.adapters[0])
    assert response.status_code == 200, response.text
    name: str = response.json()["model"]
    return name


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0)


def events(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_the_answer_says_who_gave_it_and_so_does_the_log(
    stage: Stage, endpoint: Endpoint, model: str
) -> None:
    adapter, base = stage.adapters[0], stage.base
    for name, digest in ((model, adapter.adapter), (base.model_name, base.digest)):
        response = endpoint.chat(name)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == name
        assert response.headers["x-llmops-model"] == digest
        assert (
            response.headers["x-llmops-prompt-contract"] == base.contract.digest() == adapter.prompt_contract
        )
        status = endpoint.status()
        assert response.headers["x-llmops-engine"] == digest_of(status["engine"])
        assert int(response.headers["x-llmops-route-version"]) == status["routes"]["version"]
        line = endpoint.logged(response.headers["x-request-id"])
        usage = response.json()["usage"]
        assert (line["answered_by"], line["model"], line["status"], line["error"]) == (
            digest,
            name,
            200,
            None,
        )
        assert line["n_prompt_tokens"] == usage["prompt_tokens"]
        assert line["n_completion_tokens"] == usage["completion_tokens"]
        assert line["duration_ms"] > 0


def test_adapter_and_base_give_different_answers(stage: Stage, endpoint: Endpoint, model: str) -> None:
    texts = {
        name: endpoint.chat(name, max_tokens=24).json()["choices"][0]["message"]["content"]
        for name in (model, stage.base.model_name)
    }
    assert texts[model] != texts[stage.base.model_name]


def test_joined_stream_equals_the_whole_answer(endpoint: Endpoint, model: str) -> None:
    whole = endpoint.chat(model, max_tokens=60).json()
    streamed = endpoint.chat(model, max_tokens=60, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    chunks = events(streamed.text)
    joined = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert joined == whole["choices"][0]["message"]["content"]
    assert {c["model"] for c in chunks} == {model}
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_stream_is_counted_without_showing_the_usage_nobody_asked_for(endpoint: Endpoint, model: str) -> None:
    silent = endpoint.chat(model, stream=True)
    asked = endpoint.chat(model, stream=True, stream_options={"include_usage": True})
    usage = [c["usage"] for c in events(asked.text) if c.get("usage")]
    assert len(usage) == 1
    assert all(c.get("usage") is None and c["choices"] for c in events(silent.text))
    for response in (silent, asked):
        line = endpoint.logged(response.headers["x-request-id"])
        assert (line["stream"], line["n_completion_tokens"]) == (True, usage[0]["completion_tokens"])
        assert 0 < line["ttft_ms"] <= line["duration_ms"]


def test_openai_client_chats_streams_and_completes(client: openai.OpenAI, model: str) -> None:
    turns: Any = [{"role": "user", "content": "Say something."}]
    whole = client.chat.completions.create(model=model, messages=turns, temperature=0, max_tokens=20)
    stream = client.chat.completions.create(
        model=model, messages=turns, temperature=0, max_tokens=20, stream=True
    )
    joined = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert joined == whole.choices[0].message.content
    done = client.completions.create(
        model=model, prompt="def f(", temperature=0, max_tokens=8, logprobs=2, echo=True
    )
    assert done.choices[0].text.startswith("def f(")
    assert done.choices[0].logprobs is not None
    assert len(done.choices[0].logprobs.token_logprobs or ()) == len("def f(") + 8
    parts = client.completions.create(model=model, prompt="def f(", temperature=0, max_tokens=8, stream=True)
    assert "def f(" + "".join(part.choices[0].text for part in parts) == done.choices[0].text


def test_models_lists_what_answers(
    stage: Stage, endpoint: Endpoint, client: openai.OpenAI, model: str
) -> None:
    names = {card.id for card in client.models.list()}
    assert {model, stage.base.model_name} <= names
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_conversation_without_system_prompt_gets_the_contract_s(
    stage: Stage, endpoint: Endpoint, model: str
) -> None:
    """tests/tiny.py's template puts a system turn of its own, so the prompt's length tells which one stood there."""
    bare = endpoint.chat(model, "Hi").json()["usage"]["prompt_tokens"]
    turns = [{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}]
    own = endpoint.post("/v1/chat/completions", {"model": model, "messages": turns, **GREEDY}).json()
    assert own["usage"]["prompt_tokens"] == bare - len("You are a tiny assistant.") + 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chat_template", "{{ messages }}"),
        ("chat_template_kwargs", {"enable_thinking": True}),
        ("mm_processor_kwargs", {"x": 1}),
        ("vllm_xargs", {"x": 1}),
        ("kv_transfer_params", {"x": 1}),
        ("priority", 1),
        ("prompt_embeds", "AAAA"),
        ("add_generation_prompt", False),
        ("continue_final_message", True),
        ("n", 1000),
        ("n", "2"),
        ("stream", "yes"),
        ("messages", []),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}],
        ),
        ("model", 7),
    ],
)
def test_field_that_reaches_too_far_is_refused_by_name(
    endpoint: Endpoint, model: str, field: str, value: object
) -> None:
    response = endpoint.chat(**{"model": model, field: value})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"].startswith(field)
    assert error["type"] == "invalid_request_error"
    assert endpoint.logged(response.headers["x-request-id"])["status"] == 400


def test_refused_field_that_is_null_says_nothing(endpoint: Endpoint, model: str) -> None:
    assert endpoint.chat(model, chat_template=None, priority=None, n=None).status_code == 200


def test_prompt_over_the_limit_is_the_engine_s_400(client: openai.OpenAI, model: str) -> None:
    turns: Any = [{"role": "user", "content": "x" * 5000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 4096 tokens") as caught:
        client.chat.completions.create(model=model, messages=turns)
    assert caught.value.code == "context_length_exceeded"


def test_words_of_the_engine_that_quote_a_prompt_stay_out_of_the_log(endpoint: Endpoint, model: str) -> None:
    response = endpoint.chat(model, max_tokens="a very secret number")
    assert response.status_code == 400
    assert "secret" in response.json()["error"]["message"]
    line = endpoint.logged(response.headers["x-request-id"])
    assert line["error"].startswith("the engine refused it (400")
    assert "secret" not in json.dumps(line)


def test_too_long_a_body_is_413(endpoint: Endpoint, model: str) -> None:
    response = endpoint.chat(model, "x" * (4 * 1024 * 1024))
    assert response.status_code == 413
    assert "4194304 bytes" in response.json()["error"]["message"]

    def parts() -> Any:
        for _ in range(80):
            yield b"x" * 65536

    headers = {"content-type": "application/json"}
    unannounced = httpx.post(endpoint.url + "/v1/completions", content=parts(), headers=headers, timeout=30)
    assert unannounced.status_code == 413


def test_body_that_is_not_json_is_400(endpoint: Endpoint) -> None:
    headers = {"content-type": "application/json"}
    for content in (b"{", b"[1]", b'{"model": NaN}', b"\xff"):
        response = httpx.post(endpoint.url + "/v1/completions", content=content, headers=headers)
        assert response.status_code == 400, content
        assert "request body is" in response.json()["error"]["message"]


def test_unknown_names_are_404_and_say_what_to_do(stage: Stage, endpoint: Endpoint, model: str) -> None:
    unknown = endpoint.chat("nobody")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert model in unknown.json()["error"]["message"]
    resting = stage.adapters[2].model_name
    response = endpoint.chat(resting)
    assert response.status_code == 404
    assert "POST /llmops/adapters" in response.json()["error"]["message"]
    assert resting in response.json()["error"]["message"]


def test_only_the_listed_paths_and_methods_are_served(endpoint: Endpoint) -> None:
    for path in ("/", "/v1/load_lora_adapter", "/load", "/v1//models", "/v1/models/../load", "/version"):
        response = httpx.get(endpoint.url + path)
        assert response.status_code == 404, path
    assert httpx.get(endpoint.url + "/v1/completions").status_code == 405
    raw = httpx.post(endpoint.url + "/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/"})
    assert raw.status_code == 404


def test_a_web_page_cannot_use_the_endpoint(endpoint: Endpoint, model: str) -> None:
    body = json.dumps({"adapter": "latest"})
    form = httpx.post(endpoint.url + "/llmops/adapters", content=body, headers={"content-type": "text/plain"})
    assert form.status_code == 415
    rebound = httpx.post(
        endpoint.url + "/llmops/adapters", json={"adapter": "latest"}, headers={"host": "evil.example"}
    )
    assert rebound.status_code == 403
    local = httpx.get(endpoint.url + "/v1/models", headers={"host": "localhost:8000"})
    assert local.status_code == 200


def test_request_id_of_the_client_is_kept(endpoint: Endpoint, model: str) -> None:
    body = {"model": model, "prompt": "a", "max_tokens": 1}
    response = endpoint.post("/v1/completions", body, headers={"x-request-id": "mine-42"})
    assert response.headers["x-request-id"] == "mine-42"
    assert endpoint.logged("mine-42")["path"] == "/v1/completions"


def test_probes_of_health_and_metrics_count_by_name_and_adapter(
    stage: Stage, endpoint: Endpoint, model: str
) -> None:
    endpoint.chat(model, stream=True)
    endpoint.chat("nobody")
    assert endpoint.get("/healthz").json() == endpoint.get("/readyz").json() == {"status": "ok"}
    text = endpoint.get("/metrics").text
    digest12 = stage.adapters[0].adapter[:12]
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }
    labels = f'adapter="{digest12}",arm="direct",model="{model}"'
    assert values[f'llmops_requests_total{{{labels},status="200"}}'] >= 1
    assert (
        values[
            f"llmops_tokens_total{{{labels.replace(',model', ',kind=' + chr(34) + 'completion' + chr(34) + ',model')}}}"
        ]
        >= 12
    )
    assert values[f"llmops_ttft_seconds_count{{{labels}}}"] >= 1
    assert values['llmops_requests_total{adapter="none",arm="none",model="unknown",status="404"}'] >= 1
    assert values["llmops_engine_up"] == 1


def test_no_prompt_is_written_to_the_request_log(stage: Stage, endpoint: Endpoint, model: str) -> None:
    response = endpoint.chat(model, "a very secret question")
    endpoint.logged(response.headers["x-request-id"])
    log: Path = stage.workspace.logs / "requests.jsonl"
    assert "secret" not in log.read_text()
