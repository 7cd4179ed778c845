"""`llmops data show-mask` and the quarantine of a run, through the command line."""

from __future__ import annotations

import json

import pytest

from tests.in_process import llmops
from tests.train.support import Bench


def _show(bench: Bench, *arguments: str) -> str:
    done = llmops(bench.root, "data", "show-mask", *arguments)
    assert done.code == 0, done.err
    return done.out


def test_trained_tokens_are_marked_and_the_rest_is_not(bench: Bench) -> None:
    bench.recipe(system="Be brief.")
    out = _show(bench, "recipe.yaml", "--n", "1")
    assert out == (
        "rows.jsonl:1: 15 of 72 tokens are trained on\n"
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat does open do?<|im_end|>\n"
        "<|im_start|>assistant\n⟦Open the file.<|im_end|>⟧\n\n"
        "rows     train 4, held_out 0, dropped 0\n"
    )


@pytest.mark.parametrize("row", ["3", "rows.jsonl:3"])
def test_one_row_is_found_by_number_or_place(bench: Bench, row: str) -> None:
    bench.recipe()
    out = _show(bench, "recipe.yaml", "--row", row)
    assert "⟦Return width times height.<|im_end|>⟧" in out
    assert "rows.jsonl:2" not in out


def test_json_has_every_token_once_and_its_text(bench: Bench) -> None:
    bench.recipe()
    found = json.loads(_show(bench, "recipe.yaml", "--row", "1", "--json"))
    (row,) = found["rows"]
    (sequence,) = row["sequences"]
    trained = [s for s in sequence["segments"] if s["trained"]]
    assert [(s["text"], s["ids"]) for s in trained] == [
        ("Open the file.<|im_end|>", [*b"Open the file.", 257])
    ]
    text = "".join(s["text"] for s in sequence["segments"])
    assert text.startswith("<|im_start|>system\nYou are a tiny")
    assert text.endswith("<|im_end|>\n")
    assert found["n_rows"] == {"train": 4, "held_out": 0, "dropped": 0}


def test_ids_are_printed_on_request(bench: Bench) -> None:
    bench.rows([("?", "Hi")])
    bench.recipe()
    assert "trained  72 105 257\n" in _show(bench, "recipe.yaml", "--ids")
    assert "trained  " not in _show(bench, "recipe.yaml")


def test_both_answers_of_a_pair_are_shown(bench: Bench) -> None:
    bench.prefer([("Which?", "This one.", "That one.")])
    bench.dpo_recipe(continue_from=None)
    out = _show(bench, "dpo.yaml")
    assert "rate.jsonl:1, chosen: 10 of " in out
    assert "⟦This one.<|im_end|>⟧" in out
    assert "rate.jsonl:1, rejected: 10 of " in out
    assert "⟦That one.<|im_end|>⟧" in out


def test_dropped_row_is_shown_with_its_reason(bench: Bench) -> None:
    bench.rows([("a", "b"), ("a", "x" * 300)])
    bench.recipe()
    out = _show(bench, "recipe.yaml")
    assert "rows.jsonl:2  dropped: too long: " in out
    assert out.endswith("rows     train 1, held_out 0, dropped 1, dropped: too long 1\n")


def test_row_that_is_not_there_is_a_bad_request(bench: Bench) -> None:
    bench.recipe()
    done = llmops(bench.root, "data", "show-mask", "recipe.yaml", "--row", "9")
    assert (done.code, done.err.splitlines()[-1]) == (
        2, "error: recipe.yaml: has no row 9; give 1 to 4, or a place such as rows.jsonl:1",
    )  # fmt: skip


def test_colour_marks_trained_tokens_on_a_terminal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from llmops.cli import show_mask
    from llmops.train.show_mask import Segment, Shown

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    console = Console(highlight=False, soft_wrap=True, width=80)
    shown = Shown("", (Segment(False, "q ", (1,)), Segment(True, "a", (2,))))
    with console.capture() as captured:
        console.print(show_mask.coloured(shown))
    assert captured.get() == "\x1b[2mq \x1b[0m\x1b[30;42ma\x1b[0m\n"


def test_rows_over_the_budget_are_quarantined_with_their_own_text_and_counted_by_reason(bench: Bench) -> None:
    with (bench.root / "rows.jsonl").open("ab") as file:
        file.write(b'{"prompt": "cut o\n')
        file.write(json.dumps({"prompt": "p", "completion": "x" * 300}).encode() + b"\n")
        file.write(json.dumps({"prompt": "p", "completion": "one<|im_end|>two"}).encode() + b"\n")
        file.write(b'{"prompt": "p", "completion": "\xff"}\n')
        file.write(b'{"prompt": "p", "completion": " "}\n')
    bench.recipe()
    done = llmops(bench.root, "finetune", "recipe.yaml")
    assert done.code == 2
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "5 of 9 rows would be dropped (55.56%: " in error
    assert "too long 1" in error
    (listing,) = (bench.workspace.runs).glob("*/quarantine.jsonl")
    assert str(listing) in error
    lines = {line["source"]: line for line in map(json.loads, listing.read_text().splitlines())}
    assert {source: line["reason"].split(":")[0] for source, line in lines.items()} == {
        "rows.jsonl:5": "malformed JSON",
        "rows.jsonl:6": "too long",
        "rows.jsonl:7": "end token inside",
        "rows.jsonl:8": "not UTF-8",
        "rows.jsonl:9": "empty answer",
    }
    assert lines["rows.jsonl:5"]["row"] == '{"prompt": "cut o\n'
    assert lines["rows.jsonl:7"]["row"]["messages"][-1]["content"] == "one<|im_end|>two"
    assert lines["rows.jsonl:8"]["row"] == '{"prompt": "p", "completion": "\\xff"}\n'
    assert lines["rows.jsonl:9"]["row"] == {"prompt": "p", "completion": " "}
    assert not list(bench.workspace.store_root.glob("adapter/*"))


def test_counts_by_reason_are_in_the_adapters_record(bench: Bench) -> None:
    with (bench.root / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "p", "completion": "x" * 300}) + "\n{}\n")
    bench.recipe(drop_budget_frac=0.5, n_steps=1)
    done = llmops(bench.root, "finetune", "recipe.yaml", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["lineage"]["n_rows"] == {
        "train": 4,
        "held_out": 0,
        "dropped": 2,
        "dropped: missing field": 1,
        "dropped: too long": 1,
    }


def test_rows_that_a_dataset_build_drops_are_quarantined_too(bench: Bench) -> None:
    (bench.root / "rows.jsonl").write_text('{"prompt": "p", "completion": ""}\n')
    (bench.root / "data.yaml").write_text(
        "name: docs\nlicence: CC0-1.0\norigin: made up\nsource: {kind: files, paths: [rows.jsonl]}\n"
        "pools: {train: 1, rate: 0, gate: 0}\n"
    )
    done = llmops(bench.root, "data", "build", "data.yaml")
    assert done.code == 2
    (listing,) = bench.workspace.store_root.glob("dropped/*/quarantine.jsonl")
    assert str(listing) in done.err
    assert json.loads(listing.read_text()) == {
        "source": "rows.jsonl:1",
        "reason": "empty answer: messages[1]",
        "row": {"prompt": "p", "completion": ""},
    }
