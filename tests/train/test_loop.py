"""A pass taken in parts: the same loss and gradients, less padding, and no more tokens at once than allowed."""

from __future__ import annotations

import pytest
import torch

from llmops.train import loop
from llmops.train.loop import small_parts
from llmops.train.methods.sft import build_trainer
from tests.train.support import Bench
from tests.train.test_sft import _set_up


def test_rows_of_like_length_come_together_and_are_cut_to_their_longest() -> None:
    lengths = [5, 2, 9, 3, 2]
    mask = torch.tensor([[1] * n + [0] * (9 - n) for n in lengths])
    ids = torch.arange(45).view(5, 9)
    parts = small_parts({"input_ids": ids, "attention_mask": mask}, n_tokens=6)
    assert [part["input_ids"].tolist() for part in parts] == [
        [ids[1, :2].tolist(), ids[4, :2].tolist()],
        [ids[3, :3].tolist()],
        [ids[0, :5].tolist()],
        [ids[2].tolist()],  # longer than allowed: a row is never cut
    ]
    assert all(part["attention_mask"].any(dim=0).all() for part in parts)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_of_parts_add_up_to_those_of_the_whole_pass(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    found: list[tuple[list[float], list[float]]] = []
    for n_tokens in (1, 10_000):
        monkeypatch.setattr(loop, "TOKENS_AT_ONCE", n_tokens)
        batch = {"per_device": 3, "accumulation": accumulation}
        recipe, run, rows = _set_up(bench, n_steps=3, batch=batch, learning_rate=1e-3)
        figures: list[dict[str, float]] = []
        trainer = build_trainer(recipe, run, rows, lambda s, n, f, figures=figures: figures.append(f))
        shapes: list[int] = []
        trainer.model.get_base_model().model.embed_tokens.register_forward_hook(
            lambda m, i, o, shapes=shapes: shapes.append(o.shape[0])
        )
        trainer.train()
        assert shapes == ([1] * 9 * accumulation if n_tokens == 1 else [3] * 3 * accumulation)
        found.append(([f["loss"] for f in figures], [f["grad_norm"] for f in figures]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
