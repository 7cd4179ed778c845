"""The checks through the command line: what is refused, what is dropped, what is said, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.data import find_snapshot, load_pool
from llmops.errors import LlmopsError
from llmops.records import QualityReport
from llmops.registry.adapters import Registry
from llmops.schema import load_record
from llmops.settings import Workspace
from tests.data.quality.planted import words
from tests.train.support import PAIRS, Bench

CASES = [" ".join(words(seed, 30)) for seed in (1, 2)]
LEAK = (f"Please read this: {CASES[0]}", "Fine.")


@pytest.fixture
def bench(workspace: Workspace, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A workspace with rows, and a suite whose cases lie in a file."""
    monkeypatch.chdir(workspace.root)
    bench = Bench(workspace, tiny_model)
    bench.rows()
    suites = workspace.root / "evals" / "suites"
    suites.mkdir(parents=True)
    lines = [json.dumps({"prompt": case, "completion": f"Answer {i}."}) for i, case in enumerate(CASES)]
    (suites / "cases.jsonl").write_text("\n".join(lines) + "\n")
    suite = {
        "name": "held",
        "cases": {"kind": "file", "path": "cases.jsonl"},
        "metrics": ["exact_match"],
        "decoding": {"temperature": 0, "max_tokens": 8},
    }
    (suites / "held.yaml").write_text(yaml.safe_dump(suite))
    return bench


def llmops(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, and the error's message or stderr of a command run in this process."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(done.exception, LlmopsError):
        return done.exception.exit_code, done.stdout, str(done.exception)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def runs(bench: Bench) -> list[Path]:
    """Folders of runs, oldest first; names of one second do not say which came first."""
    folders = bench.workspace.runs.iterdir() if bench.workspace.runs.is_dir() else ()
    return sorted(folders, key=lambda folder: folder.stat().st_mtime_ns)


def quality_json(bench: Bench) -> QualityReport:
    return load_record(QualityReport, json.loads((runs(bench)[-1] / "quality.json").read_text()))


def test_finetune_refuses_a_row_that_holds_a_suites_case_and_trains_without_it(bench: Bench) -> None:
    bench.rows([*PAIRS, LEAK])
    code, _, error = llmops("finetune", bench.recipe())
    assert code == 2
    assert "rows.jsonl:5: contamination: 100% of case " in error
    assert "of suite held (cases.jsonl:1)" in error
    assert quality_json(bench).refused == ("contamination",)
    registry = Registry.of(bench.workspace)
    assert registry.adapters() == []
    bench.rows()
    code, _, _ = llmops("finetune", bench.recipe())
    assert code == 0
    clean = quality_json(bench).checks["contamination"]
    assert (clean.action, clean.n_found, clean.distribution["n_cases"]) == ("refuse", 0, 2)
    (event,) = registry.ledger.events("adapter.registered")
    kept = registry.store.path("lineage_files", str(event.body["lineage_files"]))
    assert (kept / "quality.json").read_bytes() == (runs(bench)[-1] / "quality.json").read_bytes()


def test_dropped_rows_count_against_the_budget_and_are_not_in_the_snapshot_the_run_names(
    bench: Bench,
) -> None:
    bench.rows([*PAIRS, LEAK, PAIRS[0]])
    quality = {"contamination": "drop", "duplicates": "drop"}
    code, _, error = llmops("finetune", bench.recipe(quality=quality))
    assert code == 2
    assert "rows.jsonl:6: duplicate: same as rows.jsonl:1" in error
    assert "2 of 6 rows would be dropped" in error
    code, _, _ = llmops("finetune", bench.recipe(quality=quality, drop_budget_frac=0.4))
    assert code == 0
    registry = Registry.of(bench.workspace)
    lineage = registry.lineage(registry.adapter("latest"))
    dropped = [
        json.loads(line)["source"] for line in (runs(bench)[-1] / "dropped.jsonl").read_text().splitlines()
    ]
    assert sorted(dropped) == ["rows.jsonl:5", "rows.jsonl:6"]
    from llmops.records import DatasetSnapshot

    snapshot = registry.store.get_record(DatasetSnapshot, str(lineage.dataset))
    assert [r.source for r in load_pool(registry.store, snapshot, "train")] == [
        f"rows.jsonl:{n}" for n in (1, 2, 3, 4)
    ]
    assert snapshot.n_dropped == {"contamination": 1, "duplicate": 1}


def test_a_leak_let_in_by_the_recipe_is_on_record(bench: Bench) -> None:
    bench.rows([*PAIRS, LEAK])
    code, _, _ = llmops(
        "finetune", bench.recipe(quality={"contamination": "report"}, n_steps=1, max_tokens=512)
    )
    assert code == 0
    report = quality_json(bench)
    assert report.checks["contamination"].n_found == 1
    assert report.settings["contamination"]["action"] == "report"


def test_a_broken_suite_is_no_clean_suite(bench: Bench) -> None:
    (bench.root / "evals" / "suites" / "cases.jsonl").unlink()
    code, _, error = llmops("finetune", bench.recipe())
    assert code == 2
    assert "rows cannot be compared with the suites" in error
    assert "cases.jsonl: no such file" in error


def test_a_pair_that_holds_a_case_is_refused_like_a_row(bench: Bench) -> None:
    bench.prefer([("What?", "This.", "That."), ("Read.", "No.", CASES[1])])
    code, _, error = llmops("finetune", bench.dpo_recipe(continue_from=None, lora={"r": 4}))
    assert code == 2
    assert "rate.jsonl:2: contamination: 100%" in error


def test_check_prints_every_check_and_ends_with_2_only_when_a_gate_fires(bench: Bench) -> None:
    path = bench.rows([*PAIRS, PAIRS[1]])
    code, out, _ = llmops("data", "check", path)
    assert code == 0
    for check in ("pii", "duplicates", "near_duplicates", "language", "length", "contamination"):
        assert check in out
    assert f"{path}:5  duplicate: same as {path}:2" in out
    with path.open("a") as file:
        file.write(json.dumps({"prompt": LEAK[0], "completion": "x"}) + "\nnot json\n")
    code, out, error = llmops("data", "check", path, "--json")
    assert code == 2
    assert "refused by quality.contamination" in error
    found = json.loads(out)
    assert found["checks"]["contamination"]["n_found"] == 1
    assert [d["source"] for d in found["unreadable"]] == [f"{path}:7"]


def test_check_of_a_recipe_counts_its_bases_tokens_and_freezes_nothing(bench: Bench) -> None:
    code, out, _ = llmops("data", "check", bench.recipe(), "--json")
    assert code == 0
    measured = json.loads(out)["checks"]["length"]["distribution"]
    # The tiny tokenizer has one token a byte.
    assert measured["max_tokens"] == measured["max_characters"] == max(len(p) + len(c) for p, c in PAIRS)
    assert not (bench.workspace.store_root / "dataset").exists()


def data_file(bench: Bench, **changes: Any) -> Path:
    values = {
        "name": "docs",
        "licence": "CC0-1.0",
        "origin": "made up",
        "source": {"kind": "files", "paths": ["data.jsonl"]},
        "pools": {"train": 0.7, "rate": 0.0, "gate": 0.3},
    }
    path = bench.root / "data.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def write_data(bench: Bench, n: int = 30, extra: list[dict[str, str]] | None = None) -> None:
    rows = [
        {"prompt": " ".join(words(100 + i, 30)), "completion": f"Answer {i}.", "group": f"g{i}"}
        for i in range(n)
    ]
    (bench.root / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, *(extra or [])]))


def test_a_dataset_is_built_only_without_its_own_gate_cases_in_its_train_pool(bench: Bench) -> None:
    suite = {"name": "docs", "cases": {"kind": "dataset", "name": "docs"}, "metrics": ["bleu"]}
    (bench.root / "evals" / "suites" / "docs.yaml").write_text(yaml.safe_dump(suite))
    write_data(bench)
    assert llmops("data", "build", data_file(bench))[0] == 0
    registry = Registry.of(bench.workspace)
    first = find_snapshot(registry.store, registry.ledger, "docs")
    gate, train = (load_pool(registry.store, first, pool) for pool in ("gate", "train"))
    # A gate row's text again, in another wrapping and under a group that lands in the train pool.
    copy = {"prompt": f"Now: {gate[0].messages[0].content}", "completion": "x", "group": train[0].group}
    write_data(bench, extra=[copy])
    code, _, error = llmops("data", "build", data_file(bench))
    assert code == 2
    assert "data.jsonl:31: contamination: 100% of case" in error
    assert llmops("data", "check", data_file(bench))[0] == 2
    code, out, _ = llmops(
        "data", "build", data_file(bench, quality={"contamination": "drop"}, drop_budget_frac=0.1)
    )
    assert code == 0
    assert "contamination 1 (drop)" in out
    assert find_snapshot(registry.store, registry.ledger, "docs").artifact != first.artifact
    assert find_snapshot(registry.store, registry.ledger, "docs").n_dropped == {"contamination": 1}


def test_a_suite_whose_dataset_was_never_built_is_named_and_stops_nothing(bench: Bench) -> None:
    suite = {"name": "later", "cases": {"kind": "dataset", "name": "nothing"}, "metrics": ["bleu"]}
    (bench.root / "evals" / "suites" / "later.yaml").write_text(yaml.safe_dump(suite))
    code, out, _ = llmops("data", "check", bench.rows())
    assert code == 0
    assert "not checked: suite later has no cases yet: dataset nothing was never built" in out


def test_redacted_data_is_frozen_without_what_was_redacted(bench: Bench) -> None:
    pytest.importorskip("presidio_analyzer")
    write_data(
        bench, extra=[{"prompt": "Who is ada@analytical-engine.org?", "completion": "Ada.", "group": "g0"}]
    )
    code, out, _ = llmops("data", "build", data_file(bench, quality={"pii": "redact"}))
    assert code == 0
    assert "pii 1 (redact)" in out
    registry = Registry.of(bench.workspace)
    snapshot = find_snapshot(registry.store, registry.ledger, "docs")
    folder = registry.store.path("dataset", snapshot.artifact)
    text = "".join(path.read_text() for path in folder.iterdir())
    assert "Who is <EMAIL_ADDRESS>?" in text
    stored = [
        p for p in (bench.root / ".llmops").rglob("*") if p.is_file() and b"ada@analytical" in p.read_bytes()
    ]
    assert stored == []


def test_redacting_recipe_leaves_no_copy_of_what_it_redacts(bench: Bench) -> None:
    pytest.importorskip("presidio_analyzer")
    bench.rows([*PAIRS, ("Who is ada@analytical-engine.org?", "Ada.")])
    bench.rows([(f"Write to ada@analytical-engine.org, {n}.", "Sent.") for n in range(4)], "part.jsonl")
    parts = [
        {"source": {"kind": "files", "paths": ["rows.jsonl"]}},
        {
            "source": {"kind": "files", "paths": ["part.jsonl"]},
            "weight": 0.5,
        },  # two are not drawn, and kept aside
    ]
    recipe = bench.recipe(data={"kind": "mixture", "parts": parts}, quality={"pii": "redact"}, n_steps=1)
    assert llmops("finetune", recipe)[0] == 0
    assert quality_json(bench).n_redacted == 3
    assert len(list((bench.root / ".llmops").rglob("not_drawn.jsonl"))) == 1
    stored = [
        p for p in (bench.root / ".llmops").rglob("*") if p.is_file() and b"ada@analytical" in p.read_bytes()
    ]
    assert stored == []


def test_a_yaml_file_that_is_neither_recipe_nor_data_is_refused(bench: Bench) -> None:
    (bench.root / "x.yaml").write_text("name: x\n")
    code, _, error = llmops("data", "check", bench.root / "x.yaml")
    assert (code, error) == (
        2,
        f"{bench.root / 'x.yaml'}: is neither a recipe nor a data file; give one, or a file of rows",
    )


def test_two_exports_of_preferences_are_compared_by_name_and_digest(bench: Bench) -> None:
    first = bench.prefer([("A?", "yes", "no"), ("B?", "yes", "no")])
    bench.prefer([("A?", "yes", "no"), ("B?", "no", "yes"), ("C?", "yes", "no")])
    code, out, _ = llmops("data", "diff", first.digest()[:12], "docs-train", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["n_rows"], found["n_same"], len(found["added"]), found["removed"]) == ([2, 3], 1, 1, [])
    assert found["changed"][0]["before"]["answer"] == "yes | no"
    assert found["changed"][0]["after"]["answer"] == "no | yes"
