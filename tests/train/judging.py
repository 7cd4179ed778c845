"""What the tests of methods that learn from judged answers share: pairs, a session over them, TRL's step figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from transformers import AutoTokenizer

from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.train.aids import find_aids
from llmops.train.examples import read_examples
from llmops.train.gate import UNCHECKED
from llmops.train.loop import StepReporter
from llmops.train.order import training_order
from llmops.train.recipe import Recipe, load_recipe
from llmops.train.session import Session
from tests.train.support import Bench

PAIRS = (
    ("What does open do?", "Open the file.", "It is a function."),
    ("What does close do?", "Close it, then return.", "close"),
    ("What does area do?", "Return width times height.", "def area(): pass"),
    ("A longer question, with many more words than the others?", "Yes.", "Return é, 世界 and 😀."),
    ("?", "No.", "The question is empty."),
    ("What does first do?", "Return the first item.", "first first first"),
)
STYLE = tuple((f"What does f{i} do?", f"Return value {i}.", f"It is function {i}!") for i in range(40))


def set_up(
    bench: Bench, kind: str, parent: Path | None = None, pairs: Any = PAIRS, **changes: Any
) -> tuple[Recipe, Session[Any], list[int]]:
    """A recipe of a method over preferences, its session and the order of its rows."""
    bench.prefer(pairs)
    method = {"kind": kind} | changes.pop("method", {})
    path = bench.recipe(
        method=method, data={"kind": "preferences", "name": "docs-train"}, **{"learning_rate": 1e-3} | changes
    )
    recipe = load_recipe(path)
    base = resolve_base(str(bench.base))
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    encoder = (tokenizer, recipe.contract_on(base.contract))
    examples = read_examples(recipe, bench.root, Registry.of(bench.workspace), encoder, UNCHECKED)
    assert examples.dropped == ()
    session = Session(base, examples, "cpu", bench.root / "scratch", bench.root / "adapter", parent)
    lengths = [row.n_tokens for row in examples.train]
    return recipe, session, training_order(lengths, recipe.n_steps or 0, recipe.batch, recipe.seed)


def set_up_rows(
    bench: Bench, method: dict[str, Any], parent: Path | None = None, **changes: Any
) -> tuple[Recipe, Session[Any], list[int]]:
    """A recipe of a method over rows.jsonl, its session and the order of its rows."""
    path = bench.recipe(method=method, **{"learning_rate": 1e-3} | changes)
    registry, base = Registry.of(bench.workspace), resolve_base(str(bench.base))
    recipe, aids = find_aids(load_recipe(path), base, registry, path)
    encoder = (AutoTokenizer.from_pretrained(bench.base), recipe.contract_on(base.contract))
    examples = read_examples(recipe, bench.root, registry, encoder, UNCHECKED)
    assert examples.dropped == ()
    session = Session(base, examples, "cpu", bench.root / "scratch", bench.root / "adapter", parent, aids)
    lengths = [row.n_tokens for row in examples.train]
    return recipe, session, training_order(lengths, recipe.n_steps or 0, recipe.batch, recipe.seed)


def ignore(step: int, total: int, figures: dict[str, float]) -> None:
    """No one is watching."""


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in get_peft_model_state_dict(model).items()}


class AllFigures(StepReporter):
    """Keeps the whole line that TRL logs of each step."""

    def __init__(self) -> None:
        super().__init__(ignore)
        self.lines: list[dict[str, float]] = []

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            self.lines.append(dict(logs))
