"""Public names move while they serve: on evidence, and back; not when the engine does not apply the adapter."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from llmops.errors import InvalidEvidence
from llmops.records import AdapterRecord, EngineSignature
from llmops.registry.names import name_state
from llmops.registry.releases import request_override, request_promotion, request_rollback
from tests.evidence import decide
from tests.serving.conftest import Stage
from tests.serving.gateway import Endpoint, register_proved


def signature(endpoint: Endpoint) -> EngineSignature:
    return EngineSignature(**endpoint.status()["engine"])


def promote(stage: Stage, endpoint: Endpoint, name: str, adapter: AdapterRecord) -> str:
    """Release on a genuine decision; returns the kind of the gateway's answer."""
    engine = signature(endpoint)
    champion = name_state(stage.registry, name).champion_adapter
    decide(stage.registry, adapter, engine, baseline=champion, public_name=name)
    event, _ = request_promotion(stage.registry, name, engine)
    kind: str = endpoint.settled(stage.registry, event.seq).kind
    return kind


def answering(endpoint: Endpoint, name: str) -> str | None:
    response = endpoint.chat(name)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == name
    assert endpoint.answered_by(response) == response.headers["x-llmops-model"]
    return endpoint.answered_by(response)


def test_name_moves_on_evidence_and_back_within_a_second(stage: Stage, endpoint: Endpoint) -> None:
    first, second, _ = stage.adapters
    assert endpoint.chat("walks").status_code == 404
    assert promote(stage, endpoint, "walks", first) == "release.activated"
    assert answering(endpoint, "walks") == first.adapter
    engine_pid = endpoint.status()["engine_process"]["pid"]
    assert promote(stage, endpoint, "walks", second) == "release.activated"
    assert answering(endpoint, "walks") == second.adapter
    event, _ = request_rollback(stage.registry, "walks", None)
    asked = time.monotonic()
    while answering(endpoint, "walks") != first.adapter:
        assert time.monotonic() - asked < 30
    assert endpoint.settled(stage.registry, event.seq).kind == "release.activated"
    status = endpoint.status()
    assert status["engine_process"]["pid"] == engine_pid
    assert status["routes"]["names"]["walks"]["adapter"] == first.adapter
    assert name_state(stage.registry, "walks").champion_adapter == first.adapter


def test_no_request_fails_while_a_name_flips_under_load(stage: Stage, endpoint: Endpoint) -> None:
    first, second, _ = stage.adapters
    assert promote(stage, endpoint, "busy", first) == "release.activated"
    stop, seen = threading.Event(), Counter[tuple[int, str]]()
    lock = threading.Lock()

    def ask(stream: bool) -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                body = {"model": "busy", "prompt": "abc", "max_tokens": 6, "temperature": 0, "stream": stream}
                response = client.post(endpoint.url + "/v1/completions", json=body)
                broken = stream and "[DONE]" not in response.text
                with lock:
                    seen[
                        (0 if broken else response.status_code, response.headers.get("x-llmops-model", ""))
                    ] += 1

    threads = [threading.Thread(target=ask, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert promote(stage, endpoint, "busy", second) == "release.activated"
        event, _ = request_rollback(stage.registry, "busy", None)
        assert endpoint.settled(stage.registry, event.seq).kind == "release.activated"
        before = sum(seen.values())
        while sum(seen.values()) < before + 8:
            time.sleep(0.02)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in seen} == {200}
    assert {model for _, model in seen} == {first.adapter, second.adapter}


def test_override_moves_a_name_without_evidence_and_is_recorded(stage: Stage, endpoint: Endpoint) -> None:
    adapter = stage.adapters[2]
    event, release = request_override(stage.registry, "urgent", adapter, "the old one leaks secrets")
    assert endpoint.settled(stage.registry, event.seq).kind == "release.activated"
    assert answering(endpoint, "urgent") == adapter.adapter
    assert endpoint.status()["routes"]["names"]["urgent"]["release"] == release.digest()


def test_decision_measured_on_another_engine_moves_nothing(stage: Stage, endpoint: Endpoint) -> None:
    engine = signature(endpoint)
    other = EngineSignature(**{**engine.to_pairs(), "dtype": "bfloat16"})
    decide(stage.registry, stage.adapters[0], other, public_name="elsewhere")
    event, _ = request_promotion(stage.registry, "elsewhere", None)
    answer = endpoint.settled(stage.registry, event.seq)
    assert answer.kind == "release.refused"
    assert "measured on dtype=bfloat16, this engine has dtype=float32" in answer.body["reason"]
    assert endpoint.chat("elsewhere").status_code == 404


def test_adapter_that_is_not_applied_moves_nothing(
    stage: Stage, endpoint: Endpoint, peft_folders: tuple[Path, ...], tmp_path: Path
) -> None:
    """The probes are those of another adapter: what the engine computes is not what this trainer saw."""
    first = stage.adapters[0]
    promote(stage, endpoint, "steady", first)
    idle = weakened(peft_folders[1], tmp_path / "weak")
    adapter = register_proved(stage.registry, stage.base, idle, "idle", probes_of=peft_folders[1])
    loaded = endpoint.add(adapter)
    assert loaded.status_code == 422
    assert loaded.json()["error"]["code"] == "proof_failed"
    assert "adapter_effect" in loaded.json()["error"]["message"]
    before = endpoint.status()
    event, _ = request_override(stage.registry, "steady", adapter, "this must not come through")
    answer = endpoint.settled(stage.registry, event.seq)
    assert answer.kind == "release.refused"
    assert "of the adapter's effect is missing" in answer.body["reason"]
    after = endpoint.status()
    assert after["routes"] == before["routes"]
    assert after["adapters"] == before["adapters"]
    assert answering(endpoint, "steady") == first.adapter
    assert endpoint.chat(adapter.model_name).status_code == 404
    proved = {event.body["adapter"] for event in stage.registry.ledger.events("adapter.proved")}
    assert adapter.adapter not in proved


def test_adapter_with_renamed_keys_moves_nothing(
    stage: Stage, endpoint: Endpoint, peft_folders: tuple[Path, ...], tmp_path: Path
) -> None:
    renamed = copied(peft_folders[1], tmp_path / "renamed")
    weights = load_file(renamed / "adapter_model.safetensors")
    weights = {key.replace("base_model.model.", "base_model.model.wrapped."): w for key, w in weights.items()}
    save_file(weights, renamed / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter = register_proved(stage.registry, stage.base, renamed, "renamed", probes_of=peft_folders[1])
    event, _ = request_override(stage.registry, "prefixed", adapter, "this must not come through")
    assert endpoint.settled(stage.registry, event.seq).kind == "release.refused"
    assert endpoint.chat("prefixed").status_code == 404
    assert endpoint.chat(adapter.model_name).status_code == 404


def test_slots_are_reused_and_champions_keep_theirs(
    stage: Stage, endpoint: Endpoint, peft_folders: tuple[Path, ...], tmp_path: Path
) -> None:
    champions = {r["adapter"] for r in endpoint.status()["routes"]["names"].values()}
    for i in range(6):
        folder = weakened(peft_folders[0], tmp_path / str(i), 0.9 - 0.05 * i)
        adapter = register_proved(stage.registry, stage.base, folder, f"candidate{i}")
        response = endpoint.add(adapter)
        assert response.status_code == 200, response.text
        assert endpoint.chat(adapter.model_name).headers["x-llmops-model"] == adapter.adapter
        loaded = {entry["adapter"] for entry in endpoint.status()["adapters"]}
        assert len(loaded) <= 5
        assert champions <= loaded


def test_adapter_that_cannot_be_had_is_refused_by_name(stage: Stage, endpoint: Endpoint) -> None:
    unknown = endpoint.post("/llmops/adapters", {"adapter": "nobody@0123456789ab"})
    assert unknown.status_code == 404
    assert "no such adapter" in unknown.json()["error"]["message"]
    assert endpoint.post("/llmops/adapters", {"path": "/tmp"}).status_code == 400


def copied(folder: Path, target: Path) -> Path:
    return weakened(folder, target, 1.0)


def weakened(folder: Path, target: Path, factor: float = 0.1) -> Path:
    from tests.evidence import copy_with_other_weights

    return copy_with_other_weights(folder, target, factor)


def test_evidence_is_checked_when_the_name_moves(
    stage: Stage, endpoint: Endpoint, peft_folders: tuple[Path, ...]
) -> None:
    """The report is gone between request and gateway: nothing moves."""
    adapter, engine = stage.adapters[1], signature(endpoint)
    decision, _ = decide(stage.registry, adapter, engine, public_name="bare")
    hidden = stage.registry.store.path("report_record", decision.reports[0])
    hidden.rename(hidden.with_name("away"))
    try:
        with pytest.raises(InvalidEvidence, match="report_record"):
            request_promotion(stage.registry, "bare", engine)
    finally:
        hidden.with_name("away").rename(hidden)
