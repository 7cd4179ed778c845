"""`llmops eval compare`: paired differences of stored reports, aligned by case, and what makes them no evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scipy import stats as scipy_stats

from llmops.evals.reports.comparison import How, compare
from llmops.evals.reports.stored import load_result
from llmops.evals.suite import load_suite
from llmops.records import Report
from llmops.stats import paired_t
from tests.evals.conftest import Room, number, right, write
from tests.evals.sessions import METRICS, case, completion, evaluated, seconds
from tests.in_process import Done, llmops


def compared(room: Room, *arguments: str) -> Done:
    return llmops(room.workspace.root, "eval", "compare", *arguments, "--suite-file", "suite.yaml")


def half_right(room: Room, n: int = 3):  # type: ignore[no-untyped-def]
    """The candidate misses a word of every third answer, the base says another word to every fifth."""

    def script(model: str, prompt: str, nth: int) -> str:
        if model == room.adapter.model_name:
            return "answer" if number(prompt) % n == 0 else right(prompt)
        return f"{right(prompt)} indeed" if number(prompt) % 5 == 0 else right(prompt)

    return script


def test_differences_intervals_and_cases_are_those_of_the_stored_answers_scored_again(
    room: Room, tmp_path: Path
) -> None:
    base, tuned = room.run(room.serve(half_right(room)), room.suite(metrics=["rougeL", "exact_match"]))
    summary = tmp_path / "c.md"
    done = compared(room, "base", "docs", "--json", "--markdown", str(summary))
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)
    assert (found["baseline"]["report"], found["candidate"]["report"]) == (base.digest(), tuned.digest())
    suite = load_suite(room.workspace.root / "suite.yaml", room.registry)
    sides = [load_result(room.registry, r, suite.metrics)[1].scores["rougeL"].per_case for r in (base, tuned)]
    expected = paired_t(sides[0], sides[1], 0.95)
    rouge, exact = found["metrics"]
    assert rouge["difference"]["estimate"] == pytest.approx(sides[1].mean() - sides[0].mean())
    assert rouge["difference"]["low"] == pytest.approx(expected.low)
    assert rouge["difference"]["high"] == pytest.approx(expected.high)
    numbers = [number(c.messages[0].content) for c in suite.cases]
    lost = [n for n in numbers if n % 3 == 0 and n % 5]
    won = [n for n in numbers if n % 5 == 0 and n % 3]
    assert (exact["n_better"], exact["n_worse"]) == (len(won), len(lost))
    assert exact["n_equal"] == 100 - len(won) - len(lost)
    assert exact["difference"]["estimate"] == pytest.approx(len(won) - len(lost))
    assert all(number(c["messages"][0]["content"]) in lost for c in found["worst"])
    assert [c["gain"] for c in found["worst"]] == sorted(c["gain"] for c in found["worst"])
    assert {tuple(c["candidate"]) for c in found["worst"]} == {("answer",)}
    assert all(number(c["messages"][0]["content"]) in won for c in found["best"])
    assert f"| {len(won)} / {len(lost)} / {100 - len(won) - len(lost)} |" in summary.read_text()
    text = compared(room, base.digest()[:10], f"{tuned.session}:{tuned.system}", "--by", "exact_match").out
    assert "lost most by exact_match" in text
    assert "    candidate answer\n" in text


def rows(room: Room, order: list[int], answer: str = "answer") -> Path:
    """A suite over questions of a file, in this order."""
    lines = [{"prompt": f"question {i}", "completion": f"{answer} {i}", "group": f"g{i}"} for i in order]
    (room.workspace.root / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return room.suite(cases={"kind": "file", "path": "cases.jsonl"})


def test_two_sessions_are_aligned_by_case_not_by_place_and_say_that_they_are_two(room: Room) -> None:
    (first, _) = room.run(
        room.serve(lambda m, p, n: "no" if number(p) < 4 else right(p)), rows(room, list(range(20)))
    )
    server = room.serve(lambda m, p, n: "no" if 4 <= number(p) < 6 else right(p))
    (second, _) = room.run(server, rows(room, list(reversed(range(20)))))
    done = compared(room, f"{first.session}:{first.system}", f"{second.session}:{second.system}", "--json")
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)
    (line,) = found["metrics"]
    assert (line["n_better"], line["n_worse"], line["n_equal"]) == (4, 2, 14)
    assert line["difference"]["estimate"] == pytest.approx(100 * (4 - 2) / 20)
    assert any("two sessions" in warning for warning in found["warnings"])
    assert any("settings or labels changed" in warning for warning in found["warnings"])


def test_reports_on_other_cases_are_refused_with_how_many(room: Room) -> None:
    (first, _) = room.run(room.serve(lambda m, p, n: right(p)), rows(room, list(range(20))))
    (second, _) = room.run(room.serve(lambda m, p, n: right(p)), rows(room, list(range(5, 22))))
    done = compared(room, f"{first.session}:{first.system}", f"{second.session}:{second.system}")
    assert done.code == 4
    assert f"5 of 20 cases of {first.system} and 2 of 17 of {second.system} have no counterpart" in done.err


def test_reports_of_another_engine_are_shown_and_invalid(room: Room) -> None:
    server = room.serve(half_right(room))
    (first, _) = room.run(server)
    server.engine = replace(server.engine, dtype="bfloat16")
    (_, second) = room.run(server)
    done = compared(room, first.digest(), second.digest())
    assert done.code == 4
    assert "INVALID  the engine changed between the reports: dtype float32 -> bfloat16" in done.out
    assert "exact_match" in done.out


def test_altered_completions_are_no_evidence(room: Room) -> None:
    base, tuned = room.run(room.serve(half_right(room)))
    folder = room.registry.store.path("completions", tuned.completions)
    (file,) = folder.glob("completions.jsonl")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes().replace(b'"answer"', b'"answor"', 1))
    done = compared(room, base.digest(), tuned.digest())
    assert done.code == 4
    assert "INVALID" not in done.out


def test_what_is_not_there_is_a_bad_request_that_says_what_is(room: Room) -> None:
    base, tuned = room.run(room.serve(half_right(room)))
    for words, said in (
        (["nobody", "docs"], f"nobody names no report; {base.session} has {base.system}, {tuned.system}"),
        ([base.digest(), "docs", "--by", "bleu"], "bleu is no metric of suite questions; it has exact_match"),
        ([base.digest(), "docs", "--suite", "other"], "names no report"),
    ):
        done = compared(room, *words)
        assert (done.code, said in done.err) == (2, True), done.err
    root = room.workspace.root
    (root / "suite.yaml").rename(root / "moved.yaml")
    done = llmops(root, "eval", "compare", base.digest(), "docs")
    assert (done.code, "give its file with --suite-file" in done.err) == (2, True)
    assert llmops(root, "eval", "compare", base.digest(), "docs", "--suite-file", "moved.yaml").code == 0


def test_suite_files_are_found_in_the_workspace_and_a_session_stands_for_its_candidate(room: Room) -> None:
    _, first = room.run(room.serve(half_right(room)))
    _, second = room.run(room.serve(half_right(room, n=7)))
    room.workspace.suites.mkdir(parents=True)
    text = (room.workspace.root / "suite.yaml").read_text()
    (room.workspace.suites / "q.yaml").write_text(text)
    (room.workspace.suites / "broken.yaml").write_text("name: [")
    done = llmops(room.workspace.root, "eval", "compare", first.session, second.session, "--json")
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)
    assert (found["baseline"]["report"], found["candidate"]["report"]) == (first.digest(), second.digest())
    assert found["metrics"][0]["difference"]["estimate"] > 0


def test_less_is_better_where_the_metric_says_so_and_slices_are_compared_alone() -> None:
    cases = [case(i, slices={"topic": "law" if i < 40 else "art"}) for i in range(41)]

    def answering(system: str, i: int, k: int):  # type: ignore[no-untyped-def]
        slow = system.startswith("docs") and i < 40
        return completion(cases[i], system, f"answer {i}", latency_s=0.5 + (0.25 + i / 100 if slow else 0))

    part = evaluated(cases, answering, [seconds(), METRICS["exact_match"]])
    found = compare(part.suite.metrics, cases, part.results, How())  # type: ignore[arg-type]
    assert found is not None
    wait, exact = found.metrics
    assert (wait.n_better, wait.n_worse, wait.n_equal, wait.side) == (0, 40, 1, "-")
    assert (exact.side, exact.n_equal) == ("0", 41)
    assert [line.case.source for line in found.worst] == [
        f"cases.jsonl:{i}" for i in (40, 39, 38, 37, 36, 35)
    ]
    assert found.best == ()
    art, law = found.slices
    assert (art.value, art.n_cases, art.metrics) == ("art", 1, ())  # one case has no interval
    expected = scipy_stats.t.interval(0.9, 39, 0.445, scipy_stats.sem([0.25 + i / 100 for i in range(40)]))
    (own, _) = law.metrics
    assert (own.difference.low, own.difference.high) == (
        pytest.approx(expected[0]),
        pytest.approx(expected[1]),
    )


def test_reports_of_two_suites_in_one_session_are_told_apart_by_name(room: Room) -> None:
    reports: list[Report] = []
    for name in ("one", "two"):
        path = write(room.workspace.root / f"{name}.yaml", {**_config(room), "name": name})
        reports += room.run(room.serve(half_right(room)), path)
    done = llmops(
        room.workspace.root, "eval", "compare", f"{reports[0].session}:{reports[0].system}",
        f"{reports[3].session}:docs",
    )  # fmt: skip
    assert done.code == 2
    assert "answered one, " in done.err


def _config(room: Room) -> dict[str, object]:
    config: dict[str, object] = yaml.safe_load(room.suite().read_text())
    return config
