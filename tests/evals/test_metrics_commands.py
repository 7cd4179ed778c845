"""Metrics as a suite's file spells them, through `llmops eval`: what reports, the page and `metrics.jsonl` say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sacrebleu

from tests.evals.conftest import Room, number, right
from tests.evals.counterpart import Counterpart, Fault
from tests.in_process import llmops


def answer(model: str, prompt: str, nth: int) -> str:
    """The base is wrong about every second question and wordy; the adapter is right."""
    wrong = model.startswith("base@") and number(prompt) % 2
    return f"I do not know question {number(prompt)}" if wrong else right(prompt)


def evaluated(room: Room, counterpart: Counterpart, metrics: list[Any], **settings: Any) -> dict[str, Any]:
    """The reports by kind of system, from the command line as `--json` prints them."""
    suite = room.suite(metrics=metrics, **settings)
    done = llmops(room.workspace.root, "eval", "--endpoint", counterpart.url, "--json", suite.name)
    assert done.code == 0, done.err
    base, adapter = json.loads(done.out)
    return {"base": base, "adapter": adapter}


def test_suite_of_many_metrics_reports_each_with_unit_direction_and_signature(room: Room) -> None:
    (room.workspace.root / "mine.py").write_text(
        "def letters(completion, case):\n    return len(completion)\n"
    )
    counterpart = room.serve(answer)
    found = evaluated(
        room,
        counterpart,
        [
            "token_f1", "ter", "chrf++", "rougeL", "json", "latency", "completion_tokens",
            {"kind": "bleu", "tokenize": "char", "resamples": 200},
            {"kind": "exact_match", "forgive": "squad", "name": "squad"},
            {"kind": "regex", "pattern": "^answer"},
            {"kind": "limits", "max_words": 3},
            {"kind": "function", "function": "mine.py::letters", "better": "lower", "unit": "letters"},
            {"kind": "cost", "prompt": 1.0, "completion": 4.0},
            {"kind": "latency", "of": "p95"},
        ],
    )  # fmt: skip
    adapter, base = found["adapter"]["metrics"], found["base"]["metrics"]
    n_odd = sum(number(prompt) % 2 for model, prompt in counterpart.asked if model.startswith("base@"))
    share = 100 * (1 - n_odd / 100)
    assert {name: m["value"] for name, m in adapter.items() if m["unit"] == "points"} == pytest.approx(
        {"token_f1": 100, "chrf++": 100, "rougeL": 100, "json": 0, "bleu": 100, "squad": 100, "regex": 100,
         "limits": 100}
    )  # fmt: skip
    assert [base[name]["value"] for name in ("squad", "regex", "limits")] == pytest.approx([share] * 3)
    assert (adapter["ter"]["value"], adapter["ter"]["better"], adapter["ter"]["unit"]) == (
        0.0, "lower", "edits per 100 words"
    )  # fmt: skip
    prompts = [prompt for model, prompt in counterpart.asked if model.startswith("base@")]
    texts = [answer("base@", prompt, 1) for prompt in prompts]
    assert base["ter"]["value"] == pytest.approx(
        sacrebleu.corpus_ter(texts, [list(map(right, prompts))]).score
    )
    assert base["letters"]["value"] == pytest.approx(sum(map(len, texts)) / 100)
    assert base["completion_tokens"]["value"] == pytest.approx(sum(len(t.split()) for t in texts) / 100)
    tokens = sum(len(p) + 4 * len(t.split()) for p, t in zip(prompts, texts, strict=True)) / 100
    assert base["cost"]["value"] == pytest.approx(tokens / 1000)  # of 1,000 answers, prices a million
    assert base["latency"]["value"] > 0
    assert base["latency_p95"]["low"] <= base["latency_p95"]["value"] <= base["latency_p95"]["high"]
    assert "interval:bootstrap-200" in base["bleu"]["signature"]
    assert len({m["signature"] for m in base.values()}) == len(base) == 14
    folder = room.workspace.runs / found["base"]["session"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {(line["metric"], line["unit"]) for line in lines} >= {
        ("letters", "letters"),
        ("latency_p95", "s"),
    }
    assert "chrf++" in (folder / "report.html").read_text()


def test_changed_function_makes_another_suite(room: Room) -> None:
    counterpart, file = room.serve(answer), room.workspace.root / "mine.py"
    metrics = [{"kind": "function", "function": "mine.py::yes", "yes_or_no": True}]
    digests = []
    for text in ("True", "completion != ''"):
        file.write_text(f"def yes(completion, case):\n    return {text}\n")
        report = evaluated(room, counterpart, metrics)["base"]
        assert report["metrics"]["yes"]["value"] == 100
        digests.append(report["suite_digest"])
    assert digests[0] != digests[1]


def test_pass_at_k_of_drawn_samples(room: Room) -> None:
    """The base is right once in four draws, the adapter always: pass@2 is 1 - C(3,2) / C(4,2)."""
    spelt = [{"kind": "pass_at_k", "k": 2, "of": "exact_match"}, "exact_match"]
    drawn = {"samples": 4, "decoding": {"temperature": 1.0, "max_tokens": 16, "seed": 0}}

    seen = set[tuple[str, str]]()

    def luck(model: str, prompt: str, nth: int) -> str:
        first = (model, prompt) not in seen
        seen.add((model, prompt))
        return right(prompt) if first or not model.startswith("base@") else "no"

    found = evaluated(room, room.serve(luck), spelt, **drawn)
    assert found["base"]["metrics"]["pass_at_2"]["value"] == pytest.approx(50.0)
    assert found["base"]["metrics"]["exact_match"]["value"] == pytest.approx(25.0)
    assert found["adapter"]["metrics"]["pass_at_2"]["value"] == 100.0


def test_function_that_fails_ends_with_2_and_the_case_and_keeps_the_answers(room: Room) -> None:
    text = "def level(completion, case):\n    return {'answer 7': 1 / 0}[completion]\n"
    (room.workspace.root / "mine.py").write_text(text)
    counterpart = room.serve(answer)
    suite = room.suite(metrics=[{"kind": "function", "function": "mine.py::level"}])
    done = llmops(room.workspace.root, "eval", "--endpoint", counterpart.url, suite.name)
    assert done.code == 2
    assert "mine.py::level: case " in done.err
    assert "failed (ZeroDivisionError: division by zero) on the answer" in done.err
    (kept,) = room.workspace.runs.glob("*/completions.jsonl")
    assert len(kept.read_text().splitlines()) == 200
    assert room.registry.ledger.events("report.stored") == []


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({"kind": "ter", "lower": True}, "suite.yaml: metrics: metric of kind ter: lower is not a setting"),
        ({"kind": "json_schema", "file": "none.json"}, "none.json: no such JSON schema; correct the path"),
        ({"kind": "pass_at_k", "k": 2, "of": "exact_match"}, "needs 2 samples a case, and samples is 1"),
        ("perplexityy", "perplexityy is not a metric (found ['perplexityy']); did you mean perplexity?"),
    ],
)
def test_wrong_metric_is_refused_before_anything_is_asked(room: Room, metric: Any, message: str) -> None:
    counterpart = room.serve(answer)
    done = llmops(
        room.workspace.root, "eval", "--endpoint", counterpart.url, room.suite(metrics=[metric]).name
    )
    assert (done.code, counterpart.asked) == (2, [])
    assert message in " ".join(done.err.split())


def test_script_of_evaluate_scores_through_the_command_line(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = pytest.importorskip("evaluate")
    from tests.evals.test_metrics_custom import SCRIPT, modules

    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", modules().name)
    (room.workspace.root / "overlap.py").write_text(SCRIPT)
    spelt = {"kind": "evaluate", "path": "overlap.py", "value": "mean", "scale": 100, "unit": "points"}
    cases = {"kind": "dataset", "name": "questions", "pool": "gate", "n_max": 10}
    report = evaluated(room, room.serve(answer), [spelt], cases=cases)["adapter"]
    assert report["metrics"]["mean"]["value"] == 100


def test_every_case_is_held_against_its_own_expectations(room: Room) -> None:
    schema = {"type": "object", "required": ["answer"]}
    lines = [
        {"prompt": "question 0", "expected": {"regex": "^answer \\d$"}},
        {"prompt": "question 1", "expected": {"contains": ["answer", "1"], "not_contains": "know"}},
        {"prompt": "question 2", "expected": {"json_schema": schema}},
    ]
    file = room.workspace.root / "cases.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cases = {"kind": "file", "path": "cases.jsonl"}
    found = evaluated(room, room.serve(answer), ["expected"], cases=cases)
    assert found["adapter"]["metrics"]["expected"]["value"] == pytest.approx(200 / 3)
    assert found["base"]["metrics"]["expected"]["value"] == pytest.approx(100 / 3)
    spelt = json.loads(json.dumps(lines[2]).replace('["answer"]', "5"))
    file.write_text("".join(json.dumps(line) + "\n" for line in (*lines[:2], spelt)))
    counterpart = room.serve(answer)
    suite = room.suite(metrics=["expected"], cases=cases)
    done = llmops(room.workspace.root, "eval", "--endpoint", counterpart.url, suite.name)
    assert (done.code, counterpart.asked) == (2, [])
    assert "case cases.jsonl:3: expected.json_schema is no JSON schema" in done.err


def test_calls_of_tools_are_held_against_the_case(room: Room) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    wanted = [{"tool_calls": [{"name": "add", "arguments": {"n": i}}]} for i in range(4)]
    lines = [{"prompt": f"question {i}", "tools": tools, "expected": wanted[i]} for i in range(4)]
    file = room.workspace.root / "cases.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def script(model: str, prompt: str, nth: int) -> Fault:
        off = model.startswith("base@") and number(prompt) % 2
        return Fault(calls=(("add", json.dumps({"n": float(number(prompt) + off)})),))

    cases = {"kind": "file", "path": "cases.jsonl"}
    found = evaluated(room, room.serve(script), ["tool_calls"], cases=cases)
    assert found["adapter"]["metrics"]["tool_calls"]["value"] == 100
    assert found["base"]["metrics"]["tool_calls"]["value"] == 50


def test_gate_decides_on_a_function_and_on_no_other_state_of_its_file(room: Room) -> None:
    file = room.workspace.root / "mine.py"
    file.write_text("def right(completion, case):\n    return completion in case.references\n")
    room.suite(metrics=[{"kind": "function", "function": "mine.py::right", "yes_or_no": True}])
    room.gate({"metric": "right", "kind": "superior", "by": 10})
    root, counterpart = room.workspace.root, room.serve(answer)
    assert llmops(root, "gate", "declare", "gate.yaml").code == 0
    assert llmops(root, "eval", "--endpoint", counterpart.url, "suite.yaml").code == 0
    done = llmops(root, "gate", "check", "gate.yaml")
    assert (done.code, "PASS" in done.out) == (0, True), done.out + done.err
    file.write_text("def right(completion, case):\n    return True\n")
    changed = llmops(root, "gate", "check", "gate.yaml")
    assert (changed.code, "INVALID" in changed.out) == (4, True), changed.out + changed.err


def test_table_shows_small_numbers_of_other_units(room: Room) -> None:
    cost = {"kind": "cost", "prompt": 0.1, "completion": 0.1}
    counterpart = room.serve(lambda model, prompt, nth: "a b")
    done = llmops(
        room.workspace.root, "eval", "--endpoint", counterpart.url, room.suite(metrics=["json", cost]).name
    )
    assert done.code == 0, done.err
    value = sum(len(prompt) + 2 for _, prompt in counterpart.asked) / len(counterpart.asked) / 1e4
    assert f"{value:.4g} [" in done.out
    assert "0.0 [" in done.out  # points keep one decimal
