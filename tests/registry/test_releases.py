from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmops.errors import BadRequest, InvalidEvidence, ReleaseRefused
from llmops.ledger import Ledger
from llmops.records import AdapterRecord, EngineSignature, Report
from llmops.registry.adapters import Registry
from llmops.registry.bases import Base, resolve_base
from llmops.registry.names import name_state, release_anchors
from llmops.registry.release_checks import verify_release
from llmops.registry.releases import request_override, request_promotion, request_rollback
from llmops.settings import Workspace
from tests.evidence import activate, copy_with_other_weights, decide, engine_of, register


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry.of(workspace)


@pytest.fixture
def base(tiny_model: Path) -> Base:
    return resolve_base(str(tiny_model))


@pytest.fixture
def adapters(registry: Registry, base: Base, tiny_adapter: Path, tmp_path: Path) -> list[AdapterRecord]:
    other = copy_with_other_weights(tiny_adapter, tmp_path / "second", 2.0)
    return [register(registry, base, tiny_adapter), register(registry, base, other)]


@pytest.fixture
def engine(base: Base) -> EngineSignature:
    return engine_of(base)


def _promote(
    registry: Registry, adapter: AdapterRecord, engine: EngineSignature, baseline: str | None = None
) -> None:
    decide(registry, adapter, engine, baseline)
    activate(registry, request_promotion(registry, "docs", engine)[0])


def test_two_promotions_and_two_rollbacks_walk_the_history(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    first, second = adapters
    _promote(registry, first, engine)
    assert name_state(registry, "docs").champion_adapter == first.adapter
    _promote(registry, second, engine, baseline=first.adapter)
    state = name_state(registry, "docs")
    assert (state.champion_adapter, state.previous and state.previous.adapter) == (
        second.adapter,
        first.adapter,
    )
    event, release = request_rollback(registry, "docs", None)
    assert (release.adapter, release.replaces) == (first.adapter, second.adapter)
    activate(registry, event)
    state = name_state(registry, "docs")
    assert (state.champion_adapter, state.previous) == (first.adapter, None)
    with pytest.raises(BadRequest, match="no earlier release"):
        request_rollback(registry, "docs", None)


def test_name_without_any_decision_is_refused(registry: Registry, engine: EngineSignature) -> None:
    with pytest.raises(ReleaseRefused, match="no gate decision") as caught:
        request_promotion(registry, "docs", engine)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("verdict", "code"), [("FAIL", 1), ("INCONCLUSIVE", 3), ("INVALID", 4)])
def test_decision_that_does_not_pass_is_refused_with_its_code(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature, verdict: str, code: int
) -> None:
    decide(registry, adapters[0], engine, verdict=verdict)  # type: ignore[arg-type]
    with pytest.raises(ReleaseRefused, match=f"said {verdict}") as caught:
        request_promotion(registry, "docs", engine)
    assert caught.value.exit_code == code
    assert registry.ledger.events("release.requested") == []


def test_newer_failing_decision_stands_before_an_older_pass(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decide(registry, adapters[0], engine)
    decide(registry, adapters[0], engine, verdict="FAIL")
    with pytest.raises(ReleaseRefused, match="said FAIL"):
        request_promotion(registry, "docs", engine)


def test_champion_that_changed_since_the_decision_refuses_promotion(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    _promote(registry, adapters[0], engine)
    decide(registry, adapters[1], engine)  # against the base, which is no longer what customers get
    with pytest.raises(ReleaseRefused, match="but the champion is now"):
        request_promotion(registry, "docs", engine)


@pytest.mark.parametrize(
    ("part", "value"), [("dtype", "bfloat16"), ("version", "9"), ("quantization", "nf4")]
)
def test_other_engine_than_the_measured_one_refuses_promotion(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature, part: str, value: str
) -> None:
    decide(registry, adapters[0], engine)
    with pytest.raises(ReleaseRefused, match=f"this engine has {part}={value}"):
        request_promotion(registry, "docs", replace(engine, **{part: value}))


def test_champion_is_released_anew_for_another_engine_in_its_own_place(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    first, second = adapters
    _promote(registry, first, engine)
    _promote(registry, second, engine, baseline=first.adapter)
    decide(registry, second, engine)
    with pytest.raises(BadRequest, match="is the champion already"):
        request_promotion(registry, "docs", engine)
    other = replace(engine, engine="vllm")
    decide(registry, second, other, baseline=first.adapter)
    with pytest.raises(ReleaseRefused, match=f"decided against {first.adapter[:12]}"):
        request_promotion(registry, "docs", other)
    decision, _ = decide(registry, second, other, baseline=second.base)
    activate(registry, request_promotion(registry, "docs", other)[0])
    state = name_state(registry, "docs")
    assert [r.adapter for r in state.history] == [first.adapter, second.adapter]
    assert state.champion is not None
    assert state.champion.decision == decision.digest()


def test_champion_by_override_can_earn_its_evidence_later(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    activate(registry, request_override(registry, "docs", adapters[0], "champion leaks prompts")[0])
    decide(registry, adapters[0], engine)
    activate(registry, request_promotion(registry, "docs", engine)[0])
    state = name_state(registry, "docs")
    assert [(r.kind, r.adapter) for r in state.history] == [("promote", adapters[0].adapter)]


def test_waiting_request_refuses_another(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decide(registry, adapters[0], engine)
    request_promotion(registry, "docs", None)
    with pytest.raises(BadRequest, match="is waiting"):
        request_promotion(registry, "docs", None)


def _damage(registry: Registry, adapter: AdapterRecord, what: str) -> str:
    store = registry.store
    if what == "adapter":
        path = store.path("adapter", adapter.adapter) / "adapter_model.safetensors"
    elif what == "completions":
        path = store.path("completions", store.digests("completions")[0]) / "completions.jsonl"
    else:
        path = store.path(f"{what}_record", store.digests(f"{what}_record")[0]) / "record.json"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


@pytest.mark.parametrize("what", ["adapter", "completions", "report", "decision", "probes"])
def test_release_fails_closed_on_one_changed_byte_of_its_evidence(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature, what: str
) -> None:
    _promote(registry, adapters[0], engine)
    champion = name_state(registry, "docs").champion
    assert champion is not None
    assert verify_release(registry, champion).adapter == adapters[0].adapter
    _damage(registry, adapters[0], what)
    with pytest.raises(InvalidEvidence, match="release docs: "):
        verify_release(registry, champion)


def test_promotion_is_refused_when_a_report_is_gone(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    import shutil

    decision, _ = decide(registry, adapters[0], engine)
    shutil.rmtree(registry.store.path("report_record", decision.reports[1]))
    with pytest.raises(
        InvalidEvidence, match=f"release docs: store: report_record {decision.reports[1][:12]} is gone"
    ):
        request_promotion(registry, "docs", engine)


def test_override_needs_a_reason_and_carries_it(registry: Registry, adapters: list[AdapterRecord]) -> None:
    with pytest.raises(BadRequest, match="needs a reason"):
        request_override(registry, "docs", adapters[0], "because")
    event, release = request_override(registry, "docs", adapters[0], "champion leaks prompts, ticket 17")
    activate(registry, event)
    assert (release.decision, release.kind) == (None, "override")
    champion = name_state(registry, "docs").champion
    assert champion is not None
    assert champion.reason == "champion leaks prompts, ticket 17"


def test_release_records_anchor_the_ledger_outside_the_database(
    workspace: Workspace, registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    import sqlite3

    _promote(registry, adapters[0], engine)
    anchors = release_anchors(registry.store)
    assert [(a.seq, a.source[:19]) for a in anchors] == [(3, "the release of docs")]
    assert registry.ledger.verify(anchors) == 5
    with sqlite3.connect(workspace.state / "llmops.db") as connection:
        connection.execute("DELETE FROM events WHERE seq > 2")
    with pytest.raises(InvalidEvidence, match="ends at event 2, but the release of docs"):
        Ledger.of(workspace).verify(anchors)


def test_report_record_names_the_completions_it_was_scored_on(
    registry: Registry, adapters: list[AdapterRecord], engine: EngineSignature
) -> None:
    decision, _ = decide(registry, adapters[0], engine)
    report = registry.store.get_record(Report, decision.reports[0])
    assert registry.store.verify("completions", report.completions).is_dir()
