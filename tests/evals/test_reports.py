"""What a session and a decision leave for CI: JUnit XML, Markdown, annotations, and the table of samples."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from llmops.evals.reports import junit, markdown, marks
from llmops.evals.reports.comparison import N_SHOWN
from llmops.evals.reports.parquet import read_metadata, write_samples
from llmops.records import Check, ToolCall
from tests.evals.conftest import Room, number, right
from tests.evals.counterpart import Fault
from tests.evals.junit_schema import outcomes, read
from tests.evals.sessions import SYSTEMS, case, completion, evaluated, seconds
from tests.evidence import decide, engine_of
from tests.in_process import llmops

BASE, TUNED = SYSTEMS


def test_eval_writes_what_a_ci_server_reads_and_says_where_the_candidate_is_worse(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "step.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    tuned = room.adapter.model_name
    server = room.serve(lambda m, p, n: "wrong" if m == tuned and number(p) % 2 else right(p))
    room.suite()
    files = {name: tmp_path / name for name in ("junit.xml", "summary.md")}
    done = llmops(
        room.workspace.root, "eval", "suite.yaml", "--endpoint", server.url, "--annotations", "--step-summary",
        "--junit", str(files["junit.xml"]), "--markdown", str(files["summary.md"]),
    )  # fmt: skip
    assert done.code == 0, done.err
    base = room.base.model_name
    found = outcomes(read(files["junit.xml"].read_text()))
    passed = {"evidence": "passed", "exact_match": "passed"}
    assert found == {f"questions: {base}": passed, f"questions: {tuned}": passed}
    text = files["summary.md"].read_text()
    n_wrong = sum(number(p) % 2 for m, p in server.asked if m == tuned)
    assert f"| exact\\_match | 100.0 | {100 - n_wrong}.0 | -{n_wrong}.00 [" in text
    assert f"| 0 / {n_wrong} / {100 - n_wrong} | **worse** |" in text
    assert summary.read_text() == f"before\n{text}\n"
    title = f"{tuned} against {base}"
    assert re.search(
        rf"^::warning file=suite\.yaml,title={title}::exact_match is worse by -{n_wrong}\.00 \[",
        done.out,
        re.M,
    )


def test_cases_that_errored_are_errors_of_the_build_and_leave_the_reports_behind(
    room: Room, tmp_path: Path
) -> None:
    server = room.serve(
        lambda m, p, n: Fault(status=400, message="a\nb") if number(p) % 10 == 7 else right(p)
    )
    room.suite()
    done = llmops(
        room.workspace.root, "eval", "suite.yaml", "--endpoint", server.url, "--json", "--annotations",
        "--junit", str(tmp_path / "j.xml"), "--markdown", str(tmp_path / "s.md"),
    )  # fmt: skip
    assert done.code == 4
    assert len(json.loads(done.out)) == 2  # annotations leave stdout to the JSON
    n = len({p for _, p in server.asked if number(p) % 10 == 7})
    document = read((tmp_path / "j.xml").read_text())
    for suite in document.iter("testsuite"):
        (invalid, errored) = suite.findall("testcase/error")
        assert (invalid.get("type"), errored.get("type")) == ("INVALID", "errored")
        assert errored.text.startswith(f"{n} cases were not answered\nrows.jsonl:")
    errors = [line for line in done.err.splitlines() if line.startswith("::error ")]
    assert len(errors) == 2
    assert all(f"{n} of 100 cases errored" in line for line in errors)
    assert "⛔ **INVALID: no evidence**" in (tmp_path / "s.md").read_text()


def test_a_step_summary_outside_github_is_refused_before_anything_is_asked(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    server = room.serve(lambda m, p, n: right(p))
    room.suite()
    for option in (["--step-summary"], ["--junit", "no/such/folder/j.xml"]):
        done = llmops(room.workspace.root, "eval", "suite.yaml", "--endpoint", server.url, *option)
        assert done.code == 2
        assert option[0] in done.err
    assert server.asked == []


@pytest.mark.parametrize(
    ("n_base", "n_tuned", "verdict", "kind"),
    [(10, 90, "PASS", "passed"), (90, 10, "FAIL", "failure"), (50, 51, "INCONCLUSIVE", "error")],
)
def test_gate_check_tells_ci_its_verdict(
    room: Room, tmp_path: Path, n_base: int, n_tuned: int, verdict: str, kind: str
) -> None:
    shown: list[str] = []

    def script(model: str, prompt: str, nth: int) -> str:
        place = shown.index(prompt) if prompt in shown else shown.append(prompt) or len(shown) - 1
        return right(prompt) if place < (n_tuned if model == room.adapter.model_name else n_base) else "no"

    room.run(room.serve(script))
    room.gate({"metric": "exact_match", "kind": "superior", "by": 0})
    done = llmops(
        room.workspace.root, "gate", "check", "gate.yaml", "--annotations",
        "--junit", str(tmp_path / "g.xml"), "--markdown", str(tmp_path / "g.md"),
    )  # fmt: skip
    assert done.code == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}[verdict]
    (found,) = outcomes(read((tmp_path / "g.xml").read_text())).values()
    assert list(found.values()) == ["passed", kind]
    text = (tmp_path / "g.md").read_text()
    assert re.match(rf"## \S+ {verdict}: docs, gate gate\n", text)
    assert "## questions" in text  # the session's summary stands beneath
    (line,) = [line for line in done.out.splitlines() if line.startswith("::")]
    level = "notice" if verdict == "PASS" else "error"
    assert line.startswith(f"::{level} file=gate.yaml,title={verdict}%3A docs ")


def test_no_text_ends_a_block_a_cell_or_a_command() -> None:
    hostile = "```\n</details><script>|\n| a | b |\n::error::x\x00\x1b\ud800 @someone"
    cases = [case(i, source=f"a|b,c:{i}%\n") for i in range(8)]
    part = evaluated(cases, lambda system, i, k: f"answer {i}" if system == BASE else hostile)
    (comparison,) = part.comparisons
    text = "\n\n".join(markdown.of_comparison(comparison))
    body = text[text.index("Worst regressions") :]
    fences = re.findall(r"^(`{4,})text\n.*?^\1$", body, re.M | re.S)
    assert len(fences) == N_SHOWN  # the candidate's answers; nothing else needs more than three
    assert "@someone" not in markdown.cell(hostile)
    assert "\n" not in markdown.cell(hostile)
    lines = [mark.line() for mark in marks.of_session("a,b:c%.yaml", part)]
    assert [line.count("\n") for line in lines] == [0]
    assert lines[0].startswith("::warning file=a%2Cb%3Ac%25.yaml,title=")
    read(junit.of_session([evaluated(cases, lambda s, i, k: completion(
        cases[i], s, "", status="errored", error=hostile))]))  # fmt: skip


def test_a_failure_deep_in_a_message_reaches_the_annotation_whole_but_bounded() -> None:
    mark = marks.Annotation("error", "f", "t", "50%\r\n" + "x" * 5000)
    assert mark.line() == "::error file=f,title=t::50%25%0D%0A" + "x" * (marks.MAX_CHARACTERS - 8) + "..."


def test_every_sample_is_a_row_that_pandas_and_datasets_read(room: Room) -> None:
    import datasets
    import pandas

    reports = room.run(
        room.serve(lambda m, p, n: right(p) if n == 1 else "no"),
        room.suite(
            samples=2,
            decoding={"temperature": 1, "max_tokens": 16, "seed": 1},
            metrics=["exact_match", "bleu"],
        ),
    )
    path = room.workspace.runs / reports[0].session / "samples.parquet"
    frame = pandas.read_parquet(path)
    assert len(frame) == 2 * 2 * 100
    assert len(frame[["suite", "case", "system", "sample"]].drop_duplicates()) == len(frame)
    for report in reports:
        own = frame[frame.system == report.system]
        assert own["score.exact_match"].mean() == pytest.approx(report.metrics["exact_match"].value)
        assert set(own.report) == {report.digest()}
        assert set(own.answered_by) == {report.model}
        assert not own.cached.any()
    first = frame.iloc[0]
    assert first["messages"][0]["content"].replace("question", "answer") == first["references"][0]
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(room.folder / "cache"))
    assert rows.num_rows == len(frame)
    assert rows[0]["text"] == first["text"]
    about = {r["report"]: r for r in read_metadata(path)["reports"]}
    for report in reports:
        said = about[report.digest()]
        assert said["suite_digest"] == report.suite_digest
        assert said["engine"] == report.engine.to_pairs()
        assert said["metrics"]["bleu"]["signature"] == report.metrics["bleu"].signature


def test_the_table_keeps_slices_conversations_calls_and_leaves_unscored_cases_empty(tmp_path: Path) -> None:
    call = ToolCall("look", '{"at": 1}', "c1")
    cases = [
        case(i, slices={"topic": "law" if i else "art"}, follow_ups=("and?",) * (i == 0)) for i in range(4)
    ]

    def answering(system: str, i: int, k: int) -> object:
        if i == 3:
            return None
        more = {"earlier": ("first",)} if i == 0 else {"tool_calls": (call,)} if i == 1 else {}
        return completion(cases[i], system, f"answer {i}" if i != 2 else "no", **more)

    part = evaluated(cases, answering, [seconds()])  # type: ignore[arg-type]
    write_samples(tmp_path / "s.parquet", [part])
    import pandas

    frame = pandas.read_parquet(tmp_path / "s.parquet")
    own = frame[frame.system == BASE]
    assert own["slice.topic"].tolist() == ["art", "law", "law", "law"]
    assert own["score.wait"].fillna(-1).tolist() == [0.25, 0.25, 0.25, -1]
    assert own.status.tolist() == ["answered"] * 3 + ["errored"]
    assert own.earlier.iloc[0].tolist() == ["first"]
    assert own.follow_ups.iloc[0].tolist() == ["and?"]
    assert dict(own.tool_calls.iloc[1][0]) == {"name": "look", "arguments": '{"at": 1}', "id": "c1"}
    (base, _) = read_metadata(tmp_path / "s.parquet")["reports"]
    assert base["metrics"] == {
        "wait": {"signature": "wait|v:1", "unit": "s", "better": "lower", "kind": "mean"}
    }


def test_votes_that_are_still_being_given_show_no_number_and_other_units_show_theirs(room: Room) -> None:
    decision, _ = decide(room.registry, room.adapter, engine_of(room.base), verdict="INCONCLUSIVE")
    open_votes = Check(
        "win_rate", "superior", 0.0, 73.1, 50.0, 23.1, 12.5, 33.9, 0.95, 40, "INCONCLUSIVE", 80, "t"
    )
    wait = Check(
        "wait", "non_inferior", 0.1, 0.52, 0.5, 0.02, -0.01, 0.05, 0.95, 40, "PASS", None, "t",
        role="guardrail", suite="long", group="topic=law", better="lower", unit="s",
    )  # fmt: skip
    decision = replace(decision, checks=(open_votes, wait), ratings=None)
    text, xml = markdown.of_decision(decision), junit.of_decision(decision)
    for said in (text, xml):
        assert "not counted yet" in said
        assert not re.search(r"73\.1|23\.1|12\.5|33\.9", said)
    assert (
        "| guardrail long wait \\[topic=law\\] non\\_inferior | 0.500 s | 0.520 s | +0.0200 s [-0.0100, +0.0500] "
        "| < +0.100 s | 40 | ✅ PASS |"
    ) in text
    (found,) = outcomes(read(xml)).values()
    assert found["guardrail long wait [topic=law] non_inferior"] == "passed"
