"""`llmops eval grow`: what raters, sessions and captures say was bad becomes cases, each confirmed by a person."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmops.evals.suite import load_suite
from tests.evals.conftest import Room, number, right
from tests.evals.counterpart import Fault
from tests.evals.test_leaks import preferences, trained
from tests.evals.voting import campaign_of, evaluated, vote
from tests.evidence import LINEAGE
from tests.in_process import Done, llmops

OWN = [{"prompt": f"kept {i}", "completion": f"answer {i}"} for i in range(2)]


def grown_suite(room: Room, metrics: tuple[str, ...] = ("exact_match",)) -> Path:
    """A suite whose two cases lie in a file of their own; the file's last line has no end."""
    (room.workspace.root / "hard.jsonl").write_text("\n".join(map(json.dumps, OWN)))
    path = room.suite(name="hard", cases={"kind": "file", "path": "hard.jsonl"}, metrics=list(metrics))
    return path.rename(room.workspace.root / "hard.yaml")


def grow(room: Room, *arguments: str) -> Done:
    return llmops(room.workspace.root, "eval", "grow", "hard.yaml", *arguments)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def decide(path: Path, **decisions: str) -> list[dict[str, Any]]:
    """Write a decision about each prompt that is named, `question_7="yes"`."""
    found = lines(path)
    for line in found:
        line["decision"] = decisions.get(line["case"]["messages"][0]["content"].replace(" ", "_"), "?")
    path.write_text("".join(json.dumps(line) + "\n" for line in found))
    return found


def test_items_rated_bad_or_lost_by_the_champion_become_cases_that_are_asked_from_then_on(room: Room) -> None:
    campaign = campaign_of(room, evaluated(room), n_items=6)
    vote(room, campaign, "ann", ["both_bad", "first", "second", "tie", "both_bad", "first"])
    grown_suite(room)
    out = room.workspace.root / "out.jsonl"
    done = grow(room, "--campaign", "docs-gate", "--propose", str(out))
    assert done.code == 0, done.err
    items = [c.messages[0].content for c in load_suite(room.suite(), room.registry).cases[:6]]
    proposed = {line["case"]["messages"][0]["content"]: line for line in lines(out)}
    assert set(proposed) == {
        items[0],
        items[1],
        items[4],
        items[5],
    }  # a tie and a win of the champion are no failures
    assert proposed[items[0]]["why"] == "both answers were rated bad (both_bad 1)"
    assert proposed[items[1]]["why"].startswith("the champion bbbbbbbbbbbb lost (first 1)")
    assert proposed[items[1]]["case"]["references"] == [right(items[1])]  # the answer that won
    assert "references" not in proposed[items[0]]["case"]
    before = (room.workspace.root / "hard.jsonl").read_text()

    nothing = grow(room, "--confirm", str(out), "--as", "ann")
    assert "0 added; 0 declined, 4 undecided" in nothing.out
    assert (room.workspace.root / "hard.jsonl").read_text() == before
    assert room.registry.ledger.events("suite.grown") == []

    names = {
        item.replace(" ", "_"): said
        for item, said in zip(items, ["yes", "yes", "", "", "no", "yes"], strict=True)
        if said
    }
    decide(out, **names)
    refused = grow(room, "--confirm", str(out), "--as", "ann")
    assert refused.code == 2
    assert "has no reference, and exact_match needs one" in refused.err
    assert (room.workspace.root / "hard.jsonl").read_text() == before

    found = lines(out)
    found[0]["case"]["references"] = ["what a person wrote"]
    out.write_text("".join(json.dumps(line) + "\n" for line in found))
    done = grow(room, "--confirm", str(out), "--as", "Ann B.")
    assert done.code == 0, done.err
    assert "3 added; 1 declined, 0 undecided" in done.out
    written = lines(room.workspace.root / "hard.jsonl")
    assert written[:2] == OWN
    assert written[2]["references"] == ["what a person wrote"]
    assert {line["grown"]["confirmed_by"] for line in written[2:]} == {"Ann B."}
    assert written[2]["grown"]["from"].startswith("campaign docs-gate, item ")
    suite = load_suite(room.workspace.root / "hard.yaml", room.registry)
    assert [c.messages[0].content for c in suite.cases[2:]] == [items[0], items[1], items[5]]
    (event,) = room.registry.ledger.events("suite.grown")
    assert event.body["cases"] == [case.digest for case in suite.cases[2:]]
    assert event.body["after"] == suite.cases_digest

    server = room.serve(lambda m, p, n: "what a person wrote" if p == items[0] else right(p))
    reports = room.run(server, room.workspace.root / "hard.yaml")
    assert {p for _, p in server.asked} == {"kept 0", "kept 1", items[0], items[1], items[5]}
    assert [r.n_cases for r in reports] == [5, 5]

    again = grow(room, "--confirm", str(out), "--as", "ann")
    assert "0 added; 1 declined, 0 undecided, 3 in the suite already" in again.out
    assert len(lines(room.workspace.root / "hard.jsonl")) == 5


def test_votes_that_are_still_being_given_are_not_looked_at(room: Room) -> None:
    campaign = campaign_of(room, evaluated(room), n_items=3)
    vote(room, campaign, "ann", ["both_bad"] * 2)
    grown_suite(room)
    done = grow(room, "--campaign", "docs-gate", "--propose", "out.jsonl")
    assert (done.code, "votes are still being given" in done.err) == (2, True)
    assert not (room.workspace.root / "out.jsonl").exists()


def test_errored_and_worst_cases_of_a_session_are_proposed_with_their_references(room: Room) -> None:
    numbers = sorted(number(c.messages[0].content) for c in load_suite(room.suite(), room.registry).cases)
    lost, gone = numbers[3], numbers[5]

    def script(model: str, prompt: str, nth: int) -> str | Fault:
        if number(prompt) == gone:
            return Fault(status=400, message="too long")
        return "no" if model == room.adapter.model_name and number(prompt) == lost else right(prompt)

    reports = room.run(room.serve(script), room.suite(max_errored_frac=0.5))
    grown_suite(room)
    room.suite(max_errored_frac=0.5)
    arguments = ("--session", reports[0].session, "--suite-file", "suite.yaml", "--propose", "out.jsonl")
    done = grow(room, *arguments)
    assert done.code == 0, done.err
    found = {
        line["case"]["messages"][0]["content"]: line for line in lines(room.workspace.root / "out.jsonl")
    }
    assert set(found) == {f"question {lost}", f"question {gone}"}
    assert found[f"question {gone}"]["why"] == "errored: HTTP 400: too long"
    assert found[f"question {lost}"]["why"].startswith("exact_match 100.0 -> 0.0 against base@")
    assert found[f"question {lost}"]["answers"] == [f"answer {lost}", "no"]
    assert found[f"question {lost}"]["case"]["references"] == [f"answer {lost}"]
    again = grow(room, *arguments)
    assert (again.code, "is there already" in again.err) == (2, True)  # decisions in it would be lost


def captured(room: Room, *rows: dict[str, Any]) -> Path:
    path = room.workspace.root / "captured.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_captures_leave_out_what_was_good_asked_already_or_trained_on(room: Room) -> None:
    asked = load_suite(room.suite(), room.registry).cases[0]
    lineage = replace(LINEAGE, preferences=preferences(room, [asked]))
    trained(room, "tuned", 9, lineage)
    path = captured(
        room,
        {"prompt": "new", "completion": "bad answer", "rating": "bad", "references": ["a good one"]},
        {"prompt": "liked", "completion": "fine", "rating": "good"},
        {"messages": [{"role": "user", "content": "KEPT  1"}, {"role": "assistant", "content": "x"}]},
        {"prompt": f"  {asked.messages[0].content.upper()}"},
        {"prompt": "New"},
        {"prompt": "gone", "error": "timeout", "slices": {"topic": "law"}, "references": ["y"]},
    )
    grown_suite(room)
    done = grow(room, "--captured", str(path), "--propose", "out.jsonl")
    assert done.code == 0, done.err
    first, second = lines(room.workspace.root / "out.jsonl")
    assert (first["why"], first["answers"], first["origin"]) == (
        "rated bad",
        ["bad answer"],
        "captured.jsonl, line 1",
    )
    assert first["case"]["references"] == ["a good one"]  # what was answered is no reference
    assert (second["why"], second["case"]["slices"]) == ("errored: timeout", {"topic": "law"})
    left_out = "1 in the suite already, 1 in an adapter's training data, 1 proposed twice"
    assert f"2 proposed for hard; left out: {left_out}" in done.out


def test_a_person_at_the_terminal_confirms_declines_edits_and_stops(
    room: Room, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = captured(
        room,
        *(
            {"prompt": f"p{i}", "completion": f"said {i}", "references": [f"r{i}"] * (i != 2)}
            for i in range(5)
        ),
    )
    grown_suite(room)
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import json, sys\ncase = json.load(open(sys.argv[1]))\ncase['references'] = ['edited']\n"
        "json.dump(case, open(sys.argv[1], 'w'))\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {editor}")
    # p0 yes, p1 no, p2 yes (has no reference: asked again), edited, yes; p3 stop
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\nn\ny\nwhat\ne\ny\nq\n"))
    done = grow(room, "--captured", str(path), "--as", "ann")
    assert done.code == 0, done.err
    assert "answered: said 0" in done.out
    assert "has no reference, and exact_match needs one" in done.out
    written = lines(room.workspace.root / "hard.jsonl")[2:]
    assert [(w["messages"][0]["content"], w["references"]) for w in written] == [
        ("p0", ["r0"]),
        ("p2", ["edited"]),
    ]
    assert "2 added; 1 declined, 0 undecided" in done.out


def test_nobody_at_the_terminal_adds_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    path = captured(room, {"prompt": "p", "references": ["r"]})
    grown_suite(room)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = grow(room, "--captured", str(path))
    assert (done.code, "nobody answered" in done.err) == (2, True)
    assert (room.workspace.root / "hard.jsonl").read_text() == "\n".join(map(json.dumps, OWN))


def test_what_cannot_be_grown_or_confirmed_is_refused(room: Room) -> None:
    path = captured(room, {"prompt": "p", "rating": "meh"})
    grown_suite(room)
    room.suite()
    (room.workspace.root / "bad.jsonl").write_text(
        '{"decision": "perhaps", "case": {"prompt": "p"}, "why": "", "origin": ""}\n'
    )
    for suite, words, said in (
        ("suite.yaml", ["--captured", str(path)], "takes its cases from dataset questions"),
        ("hard.yaml", ["--captured", str(path)], "captured.jsonl:1: rating is 'meh'"),
        ("hard.yaml", [], "name --campaign, --session, --served or --captured"),
        ("hard.yaml", ["--confirm", "bad.jsonl"], "bad.jsonl:1: decision is 'perhaps'"),
        ("hard.yaml", ["--confirm", "bad.jsonl", "--session", "s"], "--confirm reads a proposed file"),
        ("hard.yaml", ["--session", "nothing", "--propose", "o"], "session nothing: has no reports"),
    ):
        done = llmops(room.workspace.root, "eval", "grow", suite, *words)
        assert (done.code, said in done.err) == (2, True), done.err
