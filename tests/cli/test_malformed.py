"""Recipes and data that are wrong in one way each: one line that names the place, the value and what to do; exit 2.

Nothing is trained, nothing is registered, and no weights are loaded.
"""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest

from llmops.train import model
from llmops.train.recipe import Method, Recipe
from tests.cli.malformed_recipes import ELSEWHERE, RECIPES, TEXTS
from tests.cli.malformed_rows import DROPPED, REFUSED, Rows
from tests.in_process import llmops
from tests.train.support import Bench


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(model, "load_base", never)


def _said(bench: Bench) -> str:
    """The one line that `llmops finetune` ends with."""
    done = llmops(bench.root, "finetune", "recipe.yaml")
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert (done.code, len(lines)) == (2, 1), done.err
    assert "Traceback" not in done.err
    assert not list(bench.workspace.store_root.glob("adapter/*"))
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize("what", RECIPES)
def test_recipe_that_is_wrong_is_answered_in_one_line(bench: Bench, what: str) -> None:
    changes, said = RECIPES[what]
    bench.recipe(**changes)
    words = {
        "{methods}": ", ".join(str(get_args(m.model_fields["kind"].annotation)[0]) for m in get_args(Method)),
        "{schedules}": ", ".join(map(str, get_args(Recipe.model_fields["schedule"].annotation))),
    }
    for name, value in words.items():
        said = said.replace(name, value)
    found = _said(bench)
    assert found == f"recipe.yaml: {said}"


@pytest.mark.parametrize("what", ELSEWHERE)
def test_thing_that_a_recipe_names_and_that_is_not_there_is_answered_in_one_line(
    bench: Bench, what: str
) -> None:
    changes, said = ELSEWHERE[what]
    bench.recipe(**changes)
    assert _said(bench).removeprefix(f"{bench.root}/") == said


@pytest.mark.parametrize("what", TEXTS)
def test_file_that_is_no_recipe_is_answered_in_one_line(bench: Bench, what: str) -> None:
    content, said = TEXTS[what]
    (bench.root / "recipe.yaml").write_bytes(content)
    assert _said(bench) == said


def _recipe(bench: Bench, rows: Rows) -> None:
    (bench.root / rows.name).write_bytes(rows.content)
    changes: dict[str, Any] = {
        "method": {"kind": rows.method},
        "data": {"kind": "files", "paths": [rows.name]},
    }
    bench.recipe(**changes | rows.recipe)


@pytest.mark.parametrize("what", DROPPED)
def test_bad_row_is_named_with_its_place_reason_and_quarantine(bench: Bench, what: str) -> None:
    rows = DROPPED[what]
    _recipe(bench, rows)
    found = _said(bench)
    (listing,) = bench.workspace.runs.glob("*/quarantine.jsonl")
    (kept,) = [json.loads(line) for line in listing.read_text().splitlines()]
    kind = kept["reason"].partition(":")[0]
    assert f"{kept['source']}: {kept['reason']}" == rows.said
    assert "row" in kept or kind in ("empty line", "malformed CSV")
    rest = re.escape(rows.said) + (
        rf": 1 of \d rows would be dropped \(\d+\.\d\d%: {re.escape(kind)} 1\), the budget is 0\.00%; all are "
        rf"listed in {re.escape(str(listing))}; mend them, or raise drop_budget_frac or max_tokens"
    )
    assert re.fullmatch(rest, found), found


@pytest.mark.parametrize("what", REFUSED)
def test_file_that_cannot_be_learnt_from_is_answered_in_one_line(bench: Bench, what: str) -> None:
    rows = REFUSED[what]
    _recipe(bench, rows)
    assert _said(bench).removeprefix(f"{bench.root}/") == rows.said


def test_the_corpus_is_large() -> None:
    assert len(RECIPES) + len(ELSEWHERE) + len(TEXTS) + len(DROPPED) + len(REFUSED) >= 90
