"""The gate: four verdicts from answers with known differences, and no decision on evidence that was touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmops import stats
from llmops.data import find_snapshot
from llmops.errors import BadRequest, ConfigError, InvalidEvidence
from llmops.evals.gate import GateConfig, check_gate, load_gate, overall
from llmops.evals.metrics.config import resolve_metrics
from llmops.evals.suite import SuiteConfig, load_suite
from llmops.records import Check, Decision, Report
from llmops.registry.adapters import NewAdapter
from llmops.registry.releases import request_override, request_promotion
from llmops.settings import load_yaml
from tests.evals.conftest import BETTER, N_CASES, NO_WORSE, Room, build_questions, right, write, write_adapter
from tests.evals.counterpart import Fault
from tests.evidence import LINEAGE, NO_PROBES, activate, register

GATES = Path(__file__).parents[2] / "evals" / "gates"


def answer(room: Room, base: range, tuned: range) -> list[Report]:
    """Reports in which each system is right on the cases at those positions of the suite, and wrong elsewhere."""
    place = {c.messages[-1].content: i for i, c in enumerate(load_suite(room.suite(), room.registry).cases)}

    def script(model: str, prompt: str, nth: int) -> str:
        known = base if model == room.base.model_name else tuned
        return right(prompt) if place[prompt] in known else "no idea"

    return room.run(room.serve(script))


def decide(room: Room, *checks: dict[str, Any], **settings: Any) -> Decision:
    return check_gate(room.gate(*checks, **settings), room.workspace)


def invalid(room: Room) -> tuple[str, ...]:
    """The reasons of a decision that must be INVALID and must stand in the ledger as such."""
    decision = decide(room, BETTER)
    assert (decision.verdict, decision.checks) == ("INVALID", ())
    assert room.registry.ledger.events("decision.made")[-1].body["verdict"] == "INVALID"
    return decision.reasons


@pytest.mark.parametrize(
    ("base", "tuned", "check", "verdict"),
    [
        (range(40), range(70), BETTER, "PASS"),
        (range(40), range(70), {**BETTER, "by": 10}, "PASS"),
        (range(40), range(70), {**BETTER, "by": 28}, "INCONCLUSIVE"),
        (range(40), range(70), {**BETTER, "by": 45}, "FAIL"),
        (range(40), range(10, 54), BETTER, "INCONCLUSIVE"),
        (range(70), range(40), BETTER, "FAIL"),
        (range(40), range(70), NO_WORSE, "PASS"),
        (range(40), range(38), {**NO_WORSE, "margin": 10}, "PASS"),
        (range(40), range(10, 50), NO_WORSE, "INCONCLUSIVE"),
        (range(70), range(40), NO_WORSE, "FAIL"),
        (range(40), range(40), NO_WORSE, "PASS"),
        (range(40), range(40), BETTER, "INCONCLUSIVE"),
        (range(0), range(0), NO_WORSE, "PASS"),
        (range(100), range(100), BETTER, "INCONCLUSIVE"),
    ],
)
def test_verdict_follows_the_known_difference(
    room: Room, base: range, tuned: range, check: dict[str, Any], verdict: str
) -> None:
    room.plan(check)
    answer(room, base, tuned)
    decision = decide(room, check)
    (line,) = decision.checks
    assert (decision.verdict, line.verdict) == (verdict, verdict)
    assert (line.baseline, line.candidate) == (len(base), len(tuned))
    assert line.difference == pytest.approx(len(tuned) - len(base))
    bounds = stats.paired_binary([i in base for i in range(100)], [i in tuned for i in range(100)], 0.95)
    assert (line.low, line.high) == pytest.approx((100 * bounds.low, 100 * bounds.high))
    assert (decision.reasons == ()) is (verdict == "PASS")


def test_inconclusive_says_how_many_cases_are_needed_and_that_many_would_pass(room: Room) -> None:
    answer(room, range(40), range(10, 54))
    (line,) = decide(room, BETTER).checks
    assert line.n_needed is not None
    assert line.n_needed > N_CASES
    k = line.n_needed / N_CASES
    more = [(False, True)] * round(14 * k) + [(True, False)] * round(10 * k)
    more += [(True, True)] * (line.n_needed - len(more))
    bounds = stats.paired_binary([a for a, _ in more], [b for _, b in more], 0.95)
    assert bounds.low > 0


def test_fewer_cases_than_the_gate_asks_for_decide_nothing(room: Room) -> None:
    room.plan(BETTER, min_cases=150)
    answer(room, range(0), range(100))
    decision = decide(room, BETTER, min_cases=150)
    assert decision.verdict == "INCONCLUSIVE"
    assert decision.checks[0].n_needed == 150
    assert decision.reasons == ("exact_match: 100 cases decide nothing; the gate asks for 150",)


def test_one_failing_check_fails_the_gate_and_one_open_check_leaves_it_open(room: Room) -> None:
    fails, is_open = {**BETTER, "by": 45}, {**BETTER, "by": 28}
    for primary in (BETTER, is_open, fails):
        room.plan(primary, NO_WORSE)
    answer(room, range(40), range(70))
    assert decide(room, BETTER, NO_WORSE).verdict == "PASS"
    assert decide(room, is_open, NO_WORSE).verdict == "INCONCLUSIVE"
    assert decide(room, fails, NO_WORSE).verdict == "FAIL"


def test_no_check_at_all_never_passes() -> None:
    assert overall(()) == "INVALID"
    line = Check("m", "superior", 0, 1, 0, 1, 0.5, 1.5, 0.95, 9, "PASS", None, "t")
    assert overall((line,)) == "PASS"


def test_decision_names_what_it_stands_on_and_a_release_accepts_it(room: Room) -> None:
    base, tuned = answer(room, range(40), range(70))
    decision = decide(room, BETTER)
    event = room.registry.ledger.events("decision.made")[-1]
    assert event.body == {
        "decision": decision.digest(),
        "public_name": "docs",
        "verdict": "PASS",
        "candidate": room.adapter.adapter,
    }
    assert room.registry.store.get_record(Decision, decision.digest()) == decision
    assert decision.reports == (tuned.digest(), base.digest())
    assert (decision.candidate, decision.baseline) == (room.adapter.adapter, room.base.digest)
    assert decision.engine == base.engine
    _, release = request_promotion(room.registry, "docs", base.engine)
    assert release.adapter == room.adapter.adapter


def test_champion_is_the_baseline_once_there_is_one(room: Room) -> None:
    answer(room, range(40), range(70))
    decide(room, BETTER)
    request, _ = request_promotion(room.registry, "docs", None)
    activate(room.registry, request)
    champion = room.adapter
    anew = decide(room, BETTER)
    assert (anew.candidate, anew.baseline) == (champion.adapter, room.base.digest)
    newer = room.new_adapter("docs", seed=2)
    reports = answer(room, range(40), range(70))
    assert [r.model for r in reports] == [room.base.digest, champion.adapter, newer.adapter]
    decision = decide(room, BETTER)
    assert (decision.candidate, decision.baseline) == (newer.adapter, champion.adapter)
    assert decision.verdict == "INCONCLUSIVE"


def test_candidate_of_another_base_than_the_champion_is_held_against_its_own(room: Room) -> None:
    """On the engine of its base no such champion answers: `llmops engine switch` brings the name there."""
    other = replace(room.base, digest="f" * 64)
    champion = register(room.registry, other, write_adapter(room.folder / "far", 7), "far")
    request, _ = request_override(room.registry, "docs", champion, "written for this test")
    activate(room.registry, request)
    candidate = room.new_adapter("docs", seed=2)
    answer(room, range(40), range(70))
    decision = check_gate(room.gate(BETTER), room.workspace, candidate.adapter)
    assert (decision.verdict, decision.baseline) == ("PASS", room.base.digest)
    assert decision.champion == champion.adapter
    _, release = request_promotion(room.registry, "docs", decision.engine)
    assert (release.adapter, release.replaces) == (candidate.adapter, champion.adapter)


def test_missing_reports_are_no_decision(room: Room) -> None:
    room.suite()
    with pytest.raises(InvalidEvidence, match=r"no report of .* run `llmops eval`"):
        decide(room, BETTER)
    answer(room, range(40), range(70))
    room.new_adapter("docs", seed=2)
    with pytest.raises(InvalidEvidence, match="no report"):
        decide(room, BETTER)
    with pytest.raises(InvalidEvidence, match="in session eval-1"):
        check_gate(room.gate(BETTER), room.workspace, room.adapter.adapter, "eval-1")
    assert room.registry.ledger.events("decision.made") == []


def test_baseline_that_was_not_in_the_session_is_no_decision(room: Room) -> None:
    _, tuned = answer(room, range(40), range(70))
    alone = replace(tuned, session="eval-alone")
    body = {"report": room.registry.store.put_record(alone), "suite": "questions", "model": tuned.model}
    room.registry.ledger.append("report.stored", {**body, "session": "eval-alone"})
    with pytest.raises(InvalidEvidence, match="has no report of the baseline"):
        decide(room, BETTER)
    assert check_gate(room.gate(BETTER), room.workspace, "latest", tuned.session).verdict == "PASS"


# ---------------------------------------------------------------- touched evidence


def alter(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o644)
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before


def test_altered_completions_are_invalid(room: Room) -> None:
    _, tuned = answer(room, range(40), range(70))
    folder = room.registry.store.path("completions", tuned.completions)
    alter(folder / "completions.jsonl", lambda b: b.replace(b"no idea", b"my idea", 1))
    assert "completions.jsonl was changed" in invalid(room)[0]


def test_completions_that_are_gone_are_invalid(room: Room) -> None:
    base, _ = answer(room, range(40), range(70))
    (room.registry.store.path("completions", base.completions) / "manifest.json").unlink()
    assert f"completions {base.completions[:12]} is gone" in invalid(room)[0]


def test_altered_report_is_invalid(room: Room) -> None:
    _, tuned = answer(room, range(40), range(70))
    path = room.registry.store.path("report_record", tuned.digest()) / "record.json"
    alter(path, lambda b: b.replace(b'"n_errored":0', b'"n_errored":1'))
    assert "was changed after it was stored" in invalid(room)[0]


def test_altered_adapter_is_invalid(room: Room) -> None:
    answer(room, range(40), range(70))
    path = room.registry.store.path("adapter", room.adapter.adapter) / "adapter_model.safetensors"
    alter(path, lambda b: b[:-1] + bytes([b[-1] ^ 1]))
    assert "adapter_model.safetensors was changed" in invalid(room)[0]


def test_altered_cases_are_invalid(room: Room) -> None:
    answer(room, range(40), range(70))
    snapshot = find_snapshot(room.registry.store, room.registry.ledger, "questions")
    alter(
        room.registry.store.path("dataset", snapshot.artifact) / "gate.jsonl",
        lambda b: b.replace(b"answer", b"Answer", 1),
    )
    assert "gate.jsonl was changed" in invalid(room)[0]


def test_suite_that_changed_since_is_invalid(room: Room) -> None:
    answer(room, range(40), range(70))
    room.suite(decoding={"temperature": 0.7, "max_tokens": 16})
    assert "its file or its data changed; run `llmops eval` again" in invalid(room)[0]


def test_dataset_that_was_built_anew_is_invalid(room: Room) -> None:
    answer(room, range(40), range(70))
    build_questions(room.workspace, room.registry, 400)
    assert "its file or its data changed" in invalid(room)[0]


def test_report_with_marks_is_invalid(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str | Fault:
        return Fault(status=400) if model == room.base.model_name and prompt.endswith("7") else right(prompt)

    room.run(room.serve(script))
    assert f"report of {room.base.model_name}: " in invalid(room)[0]


def replaced(room: Room, report: Report, **changes: Any) -> None:
    """Store a forged report and enter it into the ledger as the newest of its session."""
    forged = replace(report, **changes)
    body = {"report": room.registry.store.put_record(forged), "suite": "questions", "model": report.model}
    room.registry.ledger.append("report.stored", {**body, "session": report.session})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suite_digest", "5" * 64),
        ("decoding", {"temperature": 1}),
        ("cases", "6" * 64),
        ("base", "7" * 64),
        ("n_cases", 99),
        ("session", "eval-other"),
    ],
)
def test_reports_that_do_not_belong_together_are_invalid(room: Room, name: str, value: object) -> None:
    base, _ = answer(room, range(40), range(70))
    replaced(room, base, **{name: value})
    assert f"the reports differ in {name}: " in invalid(room)[0]


def test_reports_of_two_engines_are_invalid_and_name_no_engine(room: Room) -> None:
    base, _ = answer(room, range(40), range(70))
    replaced(room, base, engine=replace(base.engine, quantization="int8"))
    decision = decide(room, BETTER)
    assert (decision.verdict, decision.engine) == ("INVALID", None)
    assert "the reports differ in engine" in decision.reasons[0]


def test_number_that_completions_do_not_give_is_invalid(room: Room) -> None:
    _, tuned = answer(room, range(40), range(70))
    better = {"exact_match": replace(tuned.metrics["exact_match"], value=99.0)}
    replaced(room, tuned, metrics=better)
    assert invalid(room) == (
        f"report of {tuned.system}: says exact_match 99.0000, its completions give 70.0000",
    )


def test_completions_of_another_system_or_in_another_order_are_invalid(room: Room) -> None:
    base, tuned = answer(room, range(40), range(70))
    replaced(room, base, completions=tuned.completions, metrics=tuned.metrics)
    assert any("holds completions of docs@" in reason for reason in invalid(room))
    assert any("answers came from" in reason for reason in invalid(room))
    folder = room.registry.store.path("completions", base.completions)
    lines = (folder / "completions.jsonl").read_bytes().splitlines(keepends=True)
    swapped = room.registry.store.put_files(
        "completions", {"completions.jsonl": b"".join([lines[1], lines[0], *lines[2:]])}
    )
    replaced(room, base, completions=swapped)
    assert any("do not answer the suite's cases one by one" in reason for reason in invalid(room))


def test_hidden_errors_are_counted_again(room: Room) -> None:
    _, tuned = answer(room, range(40), range(70))
    folder = room.registry.store.path("completions", tuned.completions)
    lines = [json.loads(line) for line in (folder / "completions.jsonl").read_bytes().splitlines()]
    lines[0] |= {"status": "errored", "error": "HTTP 500", "answered_by": None, "prompt_contract": None}
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    replaced(
        room, tuned, completions=room.registry.store.put_files("completions", {"completions.jsonl": content})
    )
    reasons = invalid(room)
    assert any("1 of 100 cases errored (allowed: 0.0%), first: HTTP 500" in reason for reason in reasons)
    assert any("says 0 errored, its completions 1" in reason for reason in reasons)


def test_candidate_trained_on_the_cases_is_invalid(room: Room) -> None:
    """Another split of the same data moved gate prompts into what the adapter was trained on."""
    build_questions(room.workspace, room.registry, 300, salt="other")
    trained = find_snapshot(room.registry.store, room.registry.ledger, "questions").digest()
    build_questions(room.workspace, room.registry, 300)
    folder = write_adapter(room.folder / "leaky", 5)
    lineage = replace(LINEAGE, origin="trained", dataset=trained)
    room.registry.register(NewAdapter("leaky", folder, room.base, room.base.contract, NO_PROBES, lineage, {}))
    _, tuned = answer(room, range(40), range(100))
    assert "of 100 cases stand in the adapter's training data" in tuned.invalid[0]
    assert "stand in the adapter's training data" in invalid(room)[0]


def test_candidate_trained_on_the_other_pool_is_no_leak(room: Room) -> None:
    trained = find_snapshot(room.registry.store, room.registry.ledger, "questions").digest()
    lineage = replace(LINEAGE, origin="trained", dataset=trained)
    folder = write_adapter(room.folder / "clean", 6)
    room.registry.register(NewAdapter("clean", folder, room.base, room.base.contract, NO_PROBES, lineage, {}))
    answer(room, range(40), range(70))
    assert decide(room, BETTER).verdict == "PASS"


def test_training_data_that_is_gone_is_invalid_not_forgiven(room: Room) -> None:
    lineage = replace(LINEAGE, origin="trained", dataset="9" * 64)
    folder = write_adapter(room.folder / "lost", 7)
    room.registry.register(NewAdapter("lost", folder, room.base, room.base.contract, NO_PROBES, lineage, {}))
    answer(room, range(40), range(70))
    assert "whether cases were trained on cannot be checked" in invalid(room)[0]


def test_errored_cases_are_left_out_for_both_systems(room: Room) -> None:
    room.suite(max_errored_frac=0.5)
    place = {
        c.messages[-1].content: i
        for i, c in enumerate(load_suite(room.workspace.root / "suite.yaml", room.registry).cases)
    }

    def script(model: str, prompt: str, nth: int) -> str | Fault:
        i, is_base = place[prompt], model == room.base.model_name
        if i < 10 if is_base else 10 <= i < 20:
            return Fault(status=400)
        return right(prompt) if not is_base or i < 60 else "no idea"

    room.run(room.serve(script), room.workspace.root / "suite.yaml")
    (line,) = decide(room, BETTER).checks
    assert line.n_cases == 80
    assert (line.baseline, line.candidate) == (50.0, 100.0)


# ---------------------------------------------------------------- gate files


@pytest.mark.parametrize("path", sorted(GATES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_gate_file_loads_opens_with_its_command_and_asks_metrics_of_its_suites(path: Path) -> None:
    assert path.read_text().splitlines()[0] == f"# llmops gate check evals/gates/{path.name}"
    gate = load_gate(path)
    for target in gate.targets():
        suite = load_yaml(path.parent / gate.files[gate.suite_of(target)], SuiteConfig)
        assert target.metric in {m.name for m in resolve_metrics(suite.metrics, path.parent)}


def test_gate_digest_changes_with_every_threshold(room: Room) -> None:
    gates = [
        load_gate(room.gate(check))
        for check in (BETTER, {**BETTER, "by": 1}, NO_WORSE, {**NO_WORSE, "margin": 4})
    ]
    gates.append(load_gate(room.gate(BETTER, level=0.9)))
    assert len({gate.digest for gate in gates}) == 5
    assert isinstance(gates[0], GateConfig)


def test_metric_the_suite_does_not_have_is_a_bad_request(room: Room) -> None:
    room.plan({"metric": "rougeL", "kind": "superior"})
    answer(room, range(40), range(70))
    with pytest.raises(BadRequest, match="rougeL is not a metric of its suite suite; it has exact_match"):
        decide(room, {"metric": "rougeL", "kind": "superior"})
    assert room.registry.ledger.events("decision.made") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leval": 0.9}, "leval is not a setting; did you mean level"),
        ({"level": 1.0}, "level: "),
        ({"primary": None}, "asks nothing"),
        ({"guardrails": [{"metric": "bleu"}]}, "margin is missing"),
        ({"guardrails": [{"metric": "bleu", "margin": -1}]}, "margin: "),
    ],
)
def test_gate_that_does_not_say_what_it_must_is_refused(
    room: Room, change: dict[str, Any], message: str
) -> None:
    config = {"name": "gate", "public_name": "docs", "suite": "suite.yaml", "primary": BETTER}
    with pytest.raises(ConfigError, match=message):
        load_gate(write(room.workspace.root / "gate.yaml", {**config, **change}))


def test_missing_suite_file_is_a_bad_request(room: Room) -> None:
    answer(room, range(40), range(70))
    (room.workspace.root / "suite.yaml").unlink()
    with pytest.raises(ConfigError, match=r"suite\.yaml: no such file"):
        decide(room, BETTER)
