"""Generation through an endpoint: interleaved, bounded, retried, kept, resumed; errored is never an answer."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from llmops.engines.endpoint import Patience
from llmops.errors import BadRequest, CouldNotRun, EngineFailed, InvalidEvidence
from llmops.evals.run import report_page
from tests.evals.conftest import N_CASES, Room, right
from tests.evals.counterpart import Fault

SURROGATE = (
    b'{"choices": [{"message": {"content": "\\ud800"}}],'
    b' "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
)


def lines(room: Room, session: str, name: str = "completions.jsonl") -> list[dict[str, object]]:
    path = room.workspace.runs / session / name
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_system_answers_every_case_once_with_explicit_decoding(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    base, tuned = room.run(counterpart)
    assert Counter(Counter(counterpart.asked).values()) == {1: 2 * N_CASES}
    assert (base.system, tuned.system) == (room.base.model_name, room.adapter.model_name)
    assert (base.n_cases, base.n_errored, base.invalid) == (N_CASES, 0, ())
    expected = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 16, "seed": 0, "stream": False}
    assert all({k: body[k] for k in expected} == expected for body in counterpart.bodies)
    assert len(lines(room, base.session)) == 2 * N_CASES


def test_systems_alternate_case_by_case(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    room.run(counterpart, concurrency=1)
    models = [model for model, _ in counterpart.asked]
    prompts = [prompt for _, prompt in counterpart.asked]
    base, tuned = room.base.model_name, room.adapter.model_name
    assert models[:8] == [base, tuned, tuned, base, base, tuned, tuned, base]
    assert prompts[0::2] == prompts[1::2]


def test_no_more_questions_are_under_way_than_allowed(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    room.run(counterpart, concurrency=3)
    assert counterpart.most_at_once <= 3


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503),
        Fault(status=429, headers={"retry-after": "0.01"}),
        Fault(cut=True),
        Fault(raw=b'{"choices": ['),
        Fault(raw=b'{"choices": [{"message": {"content": null}}], "usage": {}}'),
        Fault(raw=SURROGATE),
    ],
    ids=["busy", "too many", "cut connection", "half a body", "no text", "lone surrogate"],
)
def test_passing_trouble_is_asked_again_and_leaves_no_trace_in_scores(room: Room, fault: Fault) -> None:
    def script(model: str, prompt: str, nth: int) -> str | Fault:
        return fault if nth == 1 and prompt.endswith("7") else right(prompt)

    counterpart = room.serve(script)
    reports = room.run(counterpart)
    assert [(r.n_errored, r.invalid, r.metrics["exact_match"].value) for r in reports] == [(0, (), 100.0)] * 2
    assert max(Counter(counterpart.asked).values()) == 2


def test_refused_question_is_errored_never_scored_and_makes_the_report_invalid(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str | Fault:
        refused = model == room.adapter.model_name and prompt.endswith("7")
        return Fault(status=400, message="prompt is over the limit") if refused else right(prompt)

    counterpart = room.serve(script)
    base, tuned = room.run(counterpart)
    n = sum(prompt.endswith("7") for model, prompt in counterpart.asked if model == base.system)
    assert base.invalid == ()
    assert tuned.n_errored == n > 0
    assert tuned.metrics["exact_match"].value == 100.0
    assert tuned.invalid == (
        f"{n} of 100 cases errored (allowed: 0.0%), first: HTTP 400: prompt is over the limit",
    )
    assert max(Counter(counterpart.asked).values()) == 1


def test_allowed_share_of_errored_cases_keeps_a_report_valid(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str | Fault:
        return Fault(status=400) if prompt.endswith("7") else right(prompt)

    reports = room.run(room.serve(script), room.suite(max_errored_frac=0.2))
    assert [r.invalid for r in reports] == [(), ()]
    assert reports[0].n_errored > 0


def test_answer_by_a_wrong_model_is_counted_and_named(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str | Fault:
        wrong = model == room.adapter.model_name and prompt.endswith("3")
        return Fault(right(prompt), headers={"x-llmops-model": room.base.digest}) if wrong else right(prompt)

    base, tuned = room.run(room.serve(script))
    n = sum(
        c["system"] == tuned.system and c["answered_by"] == room.base.digest
        for c in lines(room, base.session)
    )
    assert n > 0
    assert base.invalid == ()
    assert tuned.invalid == (f"{n} answers came from {'b' * 12}, not {room.adapter.adapter[:12]}",)


def test_answer_under_another_prompt_contract_is_named(room: Room) -> None:
    counterpart = room.serve(lambda m, p, n: Fault(right(p), headers={"x-llmops-prompt-contract": "c" * 64}))
    for report in room.run(counterpart):
        assert report.invalid[0].startswith("100 answers were made under prompt contract cccccccccccc, not ")


def test_answer_by_another_engine_is_errored(room: Room) -> None:
    counterpart = room.serve(lambda m, p, n: Fault(right(p), headers={"x-llmops-engine": "e" * 64}))
    report = room.run(counterpart)[0]
    assert report.n_errored == N_CASES
    assert report.metrics == {}
    assert "answered by engine eeeeeeeeeeee" in report.invalid[0]


def test_engine_that_changes_during_the_session_makes_every_report_invalid(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    counterpart.engine_after = type(counterpart.engine)(
        **{**counterpart.engine.to_pairs(), "dtype": "bfloat16"}
    )
    reports = room.run(counterpart)
    assert [r.invalid for r in reports] == [
        ("the engine changed during the session: dtype float32 -> bfloat16",)
    ] * 2


def test_endpoint_that_goes_away_stops_the_run_and_resuming_asks_only_what_is_missing(room: Room) -> None:
    down, given = True, set()

    def script(model: str, prompt: str, nth: int) -> str | Fault:
        if down and len(counterpart.asked) > 60:
            return Fault(cut=True)
        given.add((model, prompt))
        return right(prompt)

    counterpart = room.serve(script)
    patience = Patience(answer_s=5, retry_s=0.2)
    with pytest.raises(CouldNotRun, match=r"--resume eval-") as error:
        room.run(counterpart, concurrency=4, patience=patience)
    session = str(error.value).rsplit(" ", 1)[1]
    kept = {(c["case"], c["system"]) for c in lines(room, session) if c["status"] == "answered"}
    assert len(kept) == len(given) > 50
    down = False
    counterpart.asked.clear()
    reports = room.run(counterpart, session=session)
    assert len(counterpart.asked) == 2 * N_CASES - len(kept)
    assert [(r.session, r.n_errored, r.metrics["exact_match"].value) for r in reports] == [
        (session, 0, 100.0)
    ] * 2


def test_line_cut_off_by_a_crash_is_asked_again(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    session = room.run(counterpart)[0].session
    path = room.workspace.runs / session / "completions.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    counterpart.asked.clear()
    reports = room.run(counterpart, session=session)
    assert len(counterpart.asked) == 1
    assert len(lines(room, session)) == 2 * N_CASES
    assert reports[0].metrics["exact_match"].value == 100.0


def test_damaged_line_in_the_middle_is_refused_by_number(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    session = room.run(counterpart)[0].session
    path = room.workspace.runs / session / "completions.jsonl"
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([content[0], b"{\n", *content[2:]]))
    with pytest.raises(InvalidEvidence, match=r"completions\.jsonl:2 is damaged"):
        room.run(counterpart, session=session)


def test_session_of_another_suite_or_no_session_is_refused(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    session = room.run(counterpart)[0].session
    with pytest.raises(BadRequest, match="another state of suite questions"):
        room.run(counterpart, room.suite(decoding={"temperature": 0, "max_tokens": 17}), session=session)
    with pytest.raises(BadRequest, match=f"no such evaluation session; newest is {session}"):
        room.run(counterpart, session="eval-0")
    with pytest.raises(BadRequest, match="no such evaluation session"):
        room.run(counterpart, session="../../etc")


def test_two_processes_never_share_a_session(room: Room) -> None:
    from filelock import FileLock

    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    session = room.run(counterpart)[0].session
    with (
        FileLock(room.workspace.runs / session / "lock"),
        pytest.raises(BadRequest, match="another process works on it"),
    ):
        room.run(counterpart, session=session)


def test_refused_adapter_ends_the_run_with_the_endpoints_own_reason(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    for status, error in ((422, InvalidEvidence), (404, BadRequest), (502, EngineFailed)):
        counterpart.refuse_adapters = (status, "adapter docs is not applied by the engine")
        with pytest.raises(error, match="is not applied by the engine"):
            room.run(counterpart)
    assert counterpart.asked == []
    assert room.registry.ledger.events("report.stored") == []


def test_endpoint_that_cannot_hold_all_adapters_is_named(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    counterpart.loaded = Forgetful()
    with pytest.raises(CouldNotRun, match=r"is gone\); raise `slots`"):
        room.run(counterpart)


class Forgetful(set[str]):
    def add(self, name: str) -> None:
        """Hold nothing."""


def test_nothing_at_the_address_could_not_run(room: Room) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    counterpart.url = url
    with pytest.raises(CouldNotRun, match="does not answer"):
        room.run(counterpart)


def test_adapter_of_another_base_is_refused(room: Room) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    counterpart.base = type(room.base)(room.base.ref, room.base.path, "d" * 64, room.base.contract)
    with pytest.raises(BadRequest, match="its base is bbbbbbbbbbbb, the endpoint serves dddddddddddd"):
        room.run(counterpart)


def test_all_earlier_answers_are_on_disk_while_the_last_question_waits(room: Room) -> None:
    seen: list[int] = []

    def n_kept() -> int:
        return sum(
            len(path.read_bytes().splitlines()) for path in room.workspace.runs.glob("*/completions.jsonl")
        )

    def script(model: str, prompt: str, nth: int) -> str:
        if len(counterpart.asked) == 2 * N_CASES:
            deadline = time.monotonic() + 30
            while n_kept() < 2 * N_CASES - 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(n_kept())
        return right(prompt)

    counterpart = room.serve(script)
    room.run(counterpart, concurrency=1, patience=Patience(answer_s=60))
    assert seen == [2 * N_CASES - 1]


def test_run_leaves_metrics_page_report_and_ledger_event(room: Room) -> None:
    reports = room.run(room.serve(lambda model, prompt, nth: right(prompt)))
    session = reports[0].session
    assert {(m["system"], m["metric"], m["value"]) for m in lines(room, session, "metrics.jsonl")} == {
        (r.system, "exact_match", 100.0) for r in reports
    }
    assert report_page(room.workspace, session).is_file()
    events = room.registry.ledger.events("report.stored")
    assert [e.body for e in events] == [
        {"report": r.digest(), "suite": "questions", "model": r.model, "session": session} for r in reports
    ]
    for report in reports:
        folder: Path = room.registry.store.verify("completions", report.completions)
        assert len((folder / "completions.jsonl").read_bytes().splitlines()) == N_CASES
        assert len((folder / "cases.jsonl").read_bytes().splitlines()) == N_CASES


def file_suite(room: Room, *cases: dict[str, object], **settings: object) -> Path:
    (room.workspace.root / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    return room.suite(cases={"kind": "file", "path": "cases.jsonl"}, **settings)


def test_follow_ups_are_put_after_each_systems_own_answers_and_the_last_is_scored(room: Room) -> None:
    says = {"one": "1", "two": "2", "three": "3", "four": "4"}
    suite = file_suite(
        room,
        {"prompt": "one", "follow_ups": ["two", "three"], "references": ["3"]},
        {"prompt": "four", "completion": "4"},
    )
    counterpart = room.serve(lambda model, prompt, nth: says[prompt])
    reports = room.run(counterpart, suite)
    assert [(r.metrics["exact_match"].value, r.invalid) for r in reports] == [(100.0, ())] * 2
    longest = max((body["messages"] for body in counterpart.bodies), key=len)
    assert [(m["role"], m["content"]) for m in longest] == [
        ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"), ("user", "three")
    ]  # fmt: skip
    first = lines(room, reports[0].session)
    talk = next(c for c in first if c["earlier"])
    assert (talk["text"], talk["earlier"], talk["n_prompt_tokens"]) == ("3", ["1", "2"], len("onetwothree"))


def test_conversation_with_a_turn_that_fails_is_errored(room: Room) -> None:
    suite = file_suite(room, {"prompt": "a", "follow_ups": ["b"]}, {"prompt": "c"}, {"prompt": "d"},
                       metrics=[{"kind": "regex", "pattern": "x"}])  # fmt: skip
    report = room.run(room.serve(lambda m, p, n: Fault(status=400) if p == "b" else "x"), suite)[0]
    assert (report.n_errored, report.metrics["regex"].value) == (1, 100.0)


def test_turn_by_a_wrong_model_names_it_for_the_whole_conversation(room: Room) -> None:
    def script(model: str, prompt: str, nth: int) -> str | Fault:
        return Fault("x", headers={"x-llmops-model": "e" * 64}) if prompt == "a" else "x"

    suite = file_suite(room, {"prompt": "a", "follow_ups": ["b"]}, {"prompt": "c"},
                       metrics=[{"kind": "regex", "pattern": "x"}])  # fmt: skip
    assert room.run(room.serve(script), suite)[0].invalid == (
        "1 answers came from eeeeeeeeeeee, not bbbbbbbbbbbb",
    )


def test_tools_are_sent_and_calls_are_kept_without_text(room: Room) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    suite = file_suite(room, {"prompt": "1 + 1", "tools": [tool]}, {"prompt": "hello"},
                       metrics=[{"kind": "regex", "pattern": "^$"}])  # fmt: skip

    def script(model: str, prompt: str, nth: int) -> str | Fault:
        return Fault(calls=(("add", '{"a": 1}'),)) if prompt == "1 + 1" else "hi"

    counterpart = room.serve(script)
    report = room.run(counterpart, suite)[0]
    assert (report.n_errored, report.metrics["regex"].value) == (0, 50.0)
    assert [
        body.get("tools") for body in counterpart.bodies if body["messages"][0]["content"] == "1 + 1"
    ] == [[tool]] * 2
    assert [c["tool_calls"] for c in lines(room, report.session) if c["tool_calls"]] == [
        [{"name": "add", "arguments": '{"a": 1}', "id": "call_1"}]
    ] * 2
    folder = room.registry.store.verify("completions", report.completions)
    assert b'"arguments":"{\\"a\\": 1}"' in (folder / "completions.jsonl").read_bytes()
