"""Preference training itself: its loss and steps against TRL's, what it learns, and what it starts from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOTrainer

from llmops.chat import render
from llmops.errors import InvalidEvidence, TrainingFailed
from llmops.records import Message
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.train import loop
from llmops.train.methods.dpo import Scores, build_trainer, pair_losses, train_adapter, trainer_settings
from llmops.train.model import load_base
from llmops.train.order import training_order
from llmops.train.pairs import encode_pairs, read_preferences
from llmops.train.recipe import Dpo, PreferenceSource, Recipe, load_recipe
from llmops.train.rows import Pair
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


def _set_up(
    bench: Bench, parent: Path | None = None, pairs: Any = PAIRS, **changes: Any
) -> tuple[Recipe, Session[Pair], list[int]]:
    bench.prefer(pairs)
    recipe = load_recipe(bench.dpo_recipe(continue_from=None, **changes))
    base = resolve_base(str(bench.base))
    assert isinstance(recipe.data, PreferenceSource)
    found = read_preferences(recipe.data, Registry.of(bench.workspace))
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    examples = encode_pairs(found, recipe, tokenizer, recipe.contract_on(base.contract))
    assert examples.dropped == ()
    session = Session(base, examples, "cpu", bench.root / "scratch", bench.root / "adapter", parent)
    lengths = [pair.n_tokens for pair in examples.train]
    return recipe, session, training_order(lengths, recipe.n_steps or 0, recipe.batch, recipe.seed)


def _ignore(step: int, total: int, figures: dict[str, float]) -> None:
    """No one is watching."""


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in get_peft_model_state_dict(model).items()}


def _trl(bench: Bench, recipe: Recipe, session: Session[Pair], order: list[int], figures: list[Any]) -> Any:
    """TRL's own trainer, untouched: it encodes the texts itself and keeps the reference as a second adapter."""
    assert session.parent
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    contract = recipe.contract_on(session.base.contract)
    questions = [render(tokenizer, contract, [Message("user", q)], open_answer=True) for q, _, _ in PAIRS]
    rows = {
        "prompt": questions,
        "chosen": [f"{chosen}<|im_end|>" for _, chosen, _ in PAIRS],
        "rejected": [f"{rejected}<|im_end|>" for _, _, rejected in PAIRS],
    }

    class Reporter(loop.StepReporter):
        def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:
                figures.append(logs)

    return DPOTrainer(
        model=PeftModel.from_pretrained(
            load_base(session.base, recipe, "cpu"), str(session.parent), is_trainable=True
        ),
        args=trainer_settings(recipe, session, len(order)),
        train_dataset=Dataset.from_dict(rows).select(order),
        processing_class=tokenizer,
        callbacks=[Reporter(_ignore)],
    )


@pytest.mark.parametrize(
    ("method", "accumulation", "n_steps"),
    [
        ({"kind": "dpo", "beta": 0.3}, 1, 20),
        ({"kind": "dpo", "beta": 0.2, "sft_weight": 0.5}, 3, 6),
        ({"kind": "dpo", "beta": 0.1, "loss": "ipo"}, 1, 8),
    ],
    ids=["sigmoid", "sigmoid with sft, accumulated", "ipo"],
)
def test_loss_and_weights_equal_trls_own_trainer(
    bench: Bench, tiny_adapter: Path, method: dict[str, Any], accumulation: int, n_steps: int
) -> None:
    batch = {"per_device": 2, "accumulation": accumulation}
    recipe, session, order = _set_up(
        bench,
        tiny_adapter,
        method=method,
        n_steps=n_steps,
        batch=batch,
        learning_rate=1e-3,
        lora={"r": 8, "alpha": 16},
    )
    figures: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    ours = build_trainer(recipe, session, order, lambda s, n, f: figures["ours"].append(f))
    plain = _trl(bench, recipe, session, order, figures["trl"])
    first, second = _weights(ours.model), _weights(plain.model)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    ours.train()
    plain.train()
    pairs = list(zip(figures["ours"], figures["trl"], strict=True))
    assert len(pairs) == n_steps
    for mine, theirs in pairs:
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert mine["margin"] == pytest.approx(theirs["rewards/margins"], abs=2e-4)
    for mine, theirs in pairs[1:]:  # TRL calls an exact tie wrong, and all of the first step's are ties
        assert mine["accuracy"] == pytest.approx(theirs["rewards/accuracies"])
    trained, expected = _weights(ours.model), _weights(plain.model)
    for name, weight in trained.items():
        # Adam's first steps are lr * sign(gradient): rounding shows where a gradient is almost zero.
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=0.05 * recipe.learning_rate)
    assert any(not torch.equal(first[name], trained[name]) for name in first)


def test_losses_of_a_pair_are_those_of_the_papers() -> None:
    """One pair, beta 0.5: chosen gained 2 nats over 4 tokens, rejected lost 1 over 2, so the margin is 1.5."""
    policy = Scores(torch.tensor([-8.0, -7.0]), torch.tensor([4, 2]))
    reference = torch.tensor([-10.0, -6.0])
    loss, margin = pair_losses(Dpo(kind="dpo", beta=0.5), policy, reference)
    assert float(margin) == pytest.approx(1.5)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1.5)))
    loss, _ = pair_losses(Dpo(kind="dpo", beta=0.5, loss="ipo"), policy, reference)
    assert float(loss) == pytest.approx((2 / 4 + 1 / 2 - 1) ** 2)


@pytest.mark.parametrize(("method", "loss"), [({}, math.log(2)), ({"loss": "ipo", "beta": 0.2}, 6.25)])
def test_before_the_first_step_every_pair_is_a_tie(bench: Bench, method: dict[str, Any], loss: float) -> None:
    recipe, session, _ = _set_up(bench, method={"kind": "dpo"} | method, n_steps=2, held_out_frac=0.4)
    assert len(session.examples.held_out) == 2
    figures: list[dict[str, float]] = []
    end = train_adapter(recipe, session, lambda s, n, f: figures.append(f))
    assert figures[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert figures[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert end["held_out_loss_start"] == pytest.approx(loss, rel=1e-6)
    assert end["held_out_loss"] != end["held_out_loss_start"]
    assert figures[0].keys() >= {"loss", "margin", "accuracy", "grad_norm", "learning_rate"}


def test_reference_is_the_adapter_that_is_continued_and_not_the_base(
    bench: Bench, tiny_adapter: Path
) -> None:
    """Teacher-forced by hand through PEFT: what the trainer compares with is the parent's log-likelihood."""
    shape = {"r": 8, "alpha": 16}
    recipe, session, order = _set_up(bench, tiny_adapter, lora=shape, n_steps=1, batch={"per_device": 6})
    trainer = build_trainer(recipe, session, order, _ignore)
    parent = PeftModel.from_pretrained(load_base(session.base, recipe, "cpu"), str(tiny_adapter)).eval()

    def by_hand(prompt: list[int], answer: list[int]) -> float:
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            table = parent(ids).logits[0].log_softmax(-1)
        return sum(float(table[len(prompt) + i - 1, token]) for i, token in enumerate(answer))

    for row in trainer.train_dataset:
        for side in ("chosen", "rejected"):
            expected = by_hand(row["prompt_ids"], row[f"{side}_ids"])
            assert row[f"ref_{side}_logps"] == pytest.approx(expected, rel=1e-5)


def test_output_layer_runs_on_the_answers_alone(bench: Bench) -> None:
    recipe, session, order = _set_up(bench, n_steps=1, batch={"per_device": 6})
    trainer = build_trainer(recipe, session, order, _ignore)
    widths: list[int] = []
    trainer.model.get_output_embeddings().register_forward_hook(
        lambda m, i, o: widths.append(o.shape[0] * o.shape[1])
    )
    trainer.train()
    assert widths == [sum(len(p.chosen_ids) + len(p.rejected_ids) for p in session.examples.train)]


STYLE = tuple((f"What does f{i} do?", f"Return value {i}.", f"It is function {i}!") for i in range(40))


def test_unseen_pairs_are_told_apart_after_training(bench: Bench) -> None:
    recipe, session, _ = _set_up(
        bench, pairs=STYLE, n_steps=20, batch={"per_device": 4}, learning_rate=3e-3, held_out_frac=0.25
    )
    seen: list[dict[str, float]] = []
    end = train_adapter(recipe, session, lambda s, n, f: seen.append(f))
    assert len(session.examples.held_out) == 10
    assert end["held_out_accuracy"] == 1.0
    assert end["held_out_loss"] < 0.5 * end["held_out_loss_start"]
    assert end["held_out_margin"] > 0.5
    assert seen[-1]["accuracy"] == 1.0


def test_larger_beta_stays_nearer_to_the_reference(bench: Bench) -> None:
    """How far the pairs' log-likelihoods move from the reference, in nats, once a margin is worth more."""
    moved = {}
    for beta in (0.05, 2.0):
        recipe, session, _ = _set_up(
            bench, pairs=STYLE, method={"kind": "dpo", "beta": beta}, n_steps=20, learning_rate=3e-3,
            batch={"per_device": 4}, held_out_frac=0.25,
        )  # fmt: skip
        moved[beta] = train_adapter(recipe, session, _ignore)["held_out_margin"] / beta
    assert 0 < moved[2.0] < 0.5 * moved[0.05]


def test_sft_weight_keeps_the_chosen_answers_likely(bench: Bench) -> None:
    ends = []
    for weight in (0.0, 1.0):
        recipe, session, _ = _set_up(
            bench, pairs=STYLE, method={"kind": "dpo", "sft_weight": weight}, n_steps=15, learning_rate=3e-3,
            batch={"per_device": 4}, held_out_frac=0.25,
        )  # fmt: skip
        ends.append(train_adapter(recipe, session, _ignore))
    plain, held = ends
    assert held["held_out_chosen_nll"] < plain["held_out_chosen_nll"]
    assert held["held_out_chosen_nll"] < held["held_out_chosen_nll_start"]


def test_saved_adapter_is_one_plain_peft_folder_of_the_parents_shape(
    bench: Bench, tiny_adapter: Path
) -> None:
    recipe, session, _ = _set_up(bench, tiny_adapter, lora={"r": 8, "alpha": 16}, n_steps=2)
    train_adapter(recipe, session, _ignore)
    files = sorted(
        p.relative_to(session.adapter).as_posix() for p in session.adapter.rglob("*") if p.is_file()
    )
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    base = AutoModelForCausalLM.from_pretrained(bench.base)
    model = PeftModel.from_pretrained(base, str(session.adapter))
    assert list(model.peft_config) == ["default"]
    assert (model.peft_config["default"].r, model.peft_config["default"].lora_alpha) == (8, 16)


@pytest.mark.walk
def test_bfloat16_and_four_bits_learn_too(bench: Bench) -> None:
    for changes in ({"precision": "bf16"}, {"precision": "bf16", "quantization": "nf4"}):
        if "quantization" in changes:
            pytest.importorskip("bitsandbytes")
        recipe, session, order = _set_up(
            bench, pairs=STYLE, n_steps=20, batch={"per_device": 4}, learning_rate=5e-3, **changes
        )
        trainer = build_trainer(recipe, session, order, _ignore)
        assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
        seen: list[dict[str, float]] = []
        train_adapter(recipe, session, lambda s, n, f, seen=seen: seen.append(f))
        assert seen[0]["loss"] == pytest.approx(math.log(2), abs=0.02)
        assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]


def test_four_bit_weights_still_pass_gradients_after_the_reference_was_read(bench: Bench) -> None:
    """A gradient by hand: through the same base with its 4-bit weights spelt out again in full."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    recipe, session, order = _set_up(bench, quantization="nf4", precision="bf16", n_steps=1)
    trainer = build_trainer(recipe, session, order, _ignore)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    gradients = []
    for spelt_out in (False, True):
        if spelt_out:
            for name, layer in list(trainer.model.named_modules()):
                if isinstance(layer, bitsandbytes.nn.Linear4bit):
                    full = bitsandbytes.functional.dequantize_4bit(
                        layer.weight.data, layer.weight.quant_state
                    )
                    plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
                    plain.weight = torch.nn.Parameter(full.to(torch.bfloat16), requires_grad=False)
                    trainer.model.set_submodule(name, plain)
        trainer.model.train().zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            trainer.compute_loss(trainer.model, batch).backward()
        gradients.append({k: p.grad for k, p in trainer.model.named_parameters() if p.requires_grad})
    moved = [k for k, g in gradients[1].items() if float(g.norm()) > 0]
    assert any("layers.0.self_attn.q_proj" in k for k in moved)
    for name in moved:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=0.1, atol=0.02)


def test_gradient_checkpointing_changes_memory_not_weights(bench: Bench) -> None:
    weights = []
    for on in (False, True):
        recipe, session, order = _set_up(bench, gradient_checkpointing=on, n_steps=3)
        trainer = build_trainer(recipe, session, order, _ignore)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing is on
        weights.append(_weights(trainer.model))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-4, atol=1e-6)


def test_trainer_sends_no_telemetry(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer import base_trainer

    sent: list[str] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *a, **k: sent.append(str(k)))
    recipe, session, order = _set_up(bench)
    build_trainer(recipe, session, order, _ignore)
    assert sent == []


def test_loss_that_is_not_finite_ends_the_run_at_its_step(bench: Bench) -> None:
    recipe, session, _ = _set_up(bench, n_steps=50, learning_rate=1e30)
    with pytest.raises(TrainingFailed, match=r"step \d+ of 50: .*(nan|inf).*; lower learning_rate"):
        train_adapter(recipe, session, _ignore)
    assert not session.adapter.exists()


def test_weights_that_do_not_fit_their_configuration_are_refused(
    bench: Bench, tiny_adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((tiny_adapter / "adapter_config.json").read_bytes())
    tensors = load_file(tiny_adapter / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")
    recipe, session, order = _set_up(bench, folder, lora={"r": 8, "alpha": 16})
    with pytest.raises(InvalidEvidence, match="tensors are not those its configuration asks for"):
        build_trainer(recipe, session, order, _ignore)
