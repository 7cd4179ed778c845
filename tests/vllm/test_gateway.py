"""The gateway in front of real vLLM, started by the command line: releases move under load, refusals move nothing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from llmops.records import AdapterRecord, EngineSignature, Probes
from llmops.registry.adapters import NewAdapter, Registry
from llmops.registry.bases import Base
from llmops.registry.names import name_state
from llmops.registry.releases import request_promotion, request_rollback
from llmops.settings import find_workspace
from tests.evidence import LINEAGE, decide
from tests.serving.gateway import Endpoint, serving, wait_for, write_profile
from tests.vllm.conftest import ROOT

NAME = "public"
N_CLIENTS = 6


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    root = tmp_path_factory.mktemp("gateway")
    (root / "llmops.yaml").write_text("name: vllm\n")
    return Registry.of(find_workspace(root))


@pytest.fixture(scope="module")
def adapters(
    registry: Registry, base: Base, folders: dict[str, Path], probes: dict[str, Probes]
) -> dict[str, AdapterRecord]:
    """Two genuine adapters, and one whose keys were renamed after its probes were taken."""

    def register(name: str, folder: Path, of: Probes) -> AdapterRecord:
        return registry.register(NewAdapter(name, folder, base, base.contract, of, LINEAGE, {}))

    return {
        "docs": register("docs", folders["docs"], probes["docs"]),
        "titles": register("titles", folders["titles"], probes["titles"]),
        "renamed": register("renamed", folders["renamed"], probes["docs"]),
    }


@pytest.fixture(scope="module")
def endpoint(registry: Registry, base: Base, adapters: dict[str, AdapterRecord]) -> Iterator[Endpoint]:
    workspace = find_workspace(registry.store.root.parents[1])
    vllm = {
        "kind": "vllm",
        "dtype": "float32",
        "device": "cpu",
        "max_num_seqs": 16,
        "python": str(ROOT / ".venv-vllm/bin/python"),
    }
    changes = {"engine": vllm, "max_model_tokens": 1024, "slots": 4, "max_lora_rank": 8}
    with serving(write_profile(workspace.root, base.path, **changes), workspace) as endpoint:
        yield endpoint


def _promote(registry: Registry, endpoint: Endpoint, adapter: AdapterRecord) -> str:
    engine = EngineSignature(**endpoint.status()["engine"])
    champion = name_state(registry, NAME).champion_adapter
    decide(registry, adapter, engine, baseline=champion, public_name=NAME)
    event, _ = request_promotion(registry, NAME, engine)
    kind: str = endpoint.settled(registry, event.seq, within_s=180).kind
    return kind


def _answered_by(endpoint: Endpoint) -> str | None:
    response = endpoint.chat(NAME)
    assert response.status_code == 200, response.text
    return endpoint.answered_by(response)


def test_public_name_flips_between_adapters_under_load_without_a_failed_request(
    registry: Registry, endpoint: Endpoint, adapters: dict[str, AdapterRecord], base: Base
) -> None:
    """Customers stream and complete while the name moves forth and back; the base is asked beside them."""
    docs, titles = adapters["docs"], adapters["titles"]
    assert _promote(registry, endpoint, docs) == "release.activated"
    assert _answered_by(endpoint) == docs.adapter
    engine_pid = endpoint.status()["engine_process"]["pid"]
    prompt = {"prompt": "def add(a, b):", "max_tokens": 12, "temperature": 0}
    alone = endpoint.post("/v1/completions", {"model": base.model_name, **prompt}).json()["choices"][0][
        "text"
    ]
    stop, lock, seen, base_texts = (
        threading.Event(),
        threading.Lock(),
        Counter[tuple[int, str]](),
        Counter[str](),
    )

    def customer(stream: bool) -> None:
        with httpx.Client(timeout=120) as client:
            while not stop.is_set():
                body = {"model": NAME, "stream": stream, **prompt}
                answer = client.post(f"{endpoint.url}/v1/completions", json=body)
                whole = not stream or "[DONE]" in answer.text
                with lock:
                    seen[answer.status_code if whole else 0, answer.headers.get("x-llmops-model", "")] += 1

    def operator() -> None:
        with httpx.Client(timeout=120) as client:
            while not stop.is_set():
                answer = client.post(
                    f"{endpoint.url}/v1/completions", json={"model": base.model_name, **prompt}
                )
                with lock:
                    base_texts[answer.json()["choices"][0]["text"]] += 1

    threads = [threading.Thread(target=customer, args=(i % 2 == 0,)) for i in range(N_CLIENTS)]
    threads.append(threading.Thread(target=operator))
    for thread in threads:
        thread.start()
    try:
        assert _promote(registry, endpoint, titles) == "release.activated"
        wait_for(lambda: seen[200, titles.adapter] >= N_CLIENTS, within_s=120)
        event, _ = request_rollback(registry, NAME, None)
        assert endpoint.settled(registry, event.seq).kind == "release.activated"
        assert _answered_by(endpoint) == docs.adapter
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in seen} == {200}, seen
    assert {model for _, model in seen} == {docs.adapter, titles.adapter}
    assert set(base_texts) == {alone}
    assert endpoint.status()["engine_process"]["pid"] == engine_pid


def test_adapter_that_vllm_does_not_apply_is_refused_and_moves_nothing(
    registry: Registry, endpoint: Endpoint, adapters: dict[str, AdapterRecord]
) -> None:
    champion = name_state(registry, NAME).champion_adapter or _promoted(registry, endpoint, adapters)
    before = endpoint.status()["routes"]
    assert _promote(registry, endpoint, adapters["renamed"]) == "release.refused"
    assert endpoint.status()["routes"] == before
    assert _answered_by(endpoint) == champion
    assert endpoint.chat(adapters["renamed"].model_name).status_code == 404
    proved = {event.body["adapter"] for event in registry.ledger.events("adapter.proved")}
    assert adapters["renamed"].adapter not in proved


def _promoted(registry: Registry, endpoint: Endpoint, adapters: dict[str, AdapterRecord]) -> str:
    assert _promote(registry, endpoint, adapters["docs"]) == "release.activated"
    return adapters["docs"].adapter


def test_openai_client_chats_streams_and_completes_through_the_gateway(
    registry: Registry, endpoint: Endpoint, adapters: dict[str, AdapterRecord]
) -> None:
    if name_state(registry, NAME).champion is None:
        _promoted(registry, endpoint, adapters)
    client = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="unused")
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": "Name a colour."}
    ]
    whole = client.chat.completions.create(model=NAME, messages=messages, max_tokens=16, temperature=0)
    chunks = client.chat.completions.create(
        model=NAME, messages=messages, max_tokens=16, temperature=0, stream=True
    )
    joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert joined == whole.choices[0].message.content
    assert whole.model == NAME
    done = client.completions.create(
        model=NAME, prompt="def add(a, b):", max_tokens=8, temperature=0, logprobs=1
    )
    assert done.usage is not None
    assert done.usage.completion_tokens == 8
    assert len(done.choices[0].logprobs.token_logprobs or []) == 8  # type: ignore[union-attr]
