"""Training itself: the labels the model sees, the loss against TRL's, determinism, and what stops a run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from transformers import AutoTokenizer
from trl import SFTTrainer

from llmops.chat import read_contract
from llmops.errors import ConfigError, TrainingFailed
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.schema import no_progress
from llmops.train import loop
from llmops.train.finetune import finetune
from llmops.train.methods.sft import build_trainer, rows_in_order, train_adapter, trainer_settings
from llmops.train.model import load_base, lora_config, pick_device, pick_precision, require_means
from llmops.train.plan import plan
from llmops.train.recipe import Recipe, load_recipe
from llmops.train.rows import Example, encode_rows, read_source
from llmops.train.session import Session
from tests.train.support import PAIRS, Bench

MIXED = (
    *PAIRS,
    ("A longer question, with many more words than the others?", "Yes."),
    ("?", "Return é, 世界 and 😀."),
)


def _set_up(bench: Bench, **changes: Any) -> tuple[Recipe, Session[Example], list[list[int]]]:
    bench.rows(MIXED)
    recipe = load_recipe(bench.recipe(**changes))
    base = resolve_base(str(bench.base))
    source = read_source(recipe.data, recipe.name, bench.root, Registry.of(bench.workspace))
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    examples = encode_rows(source, recipe, tokenizer, recipe.contract_on(base.contract), no_progress)
    run = Session(base, examples, "cpu", bench.root / "scratch", bench.root / "adapter")
    return recipe, run, rows_in_order(recipe, [e.n_tokens for e in examples.train])


def _ignore(step: int, total: int, figures: dict[str, float]) -> None:
    """No one is watching."""


def _weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in get_peft_model_state_dict(trainer.model).items()}


def test_labels_in_the_trained_batches_decode_to_exactly_the_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run, _ = _set_up(bench, n_steps=3, batch={"per_device": 2})
    seen: list[dict[str, torch.Tensor]] = []
    scored = loop.label_nll

    def record(model: Any, output_layer: Any, batch: dict[str, torch.Tensor]) -> Any:
        seen.append({k: v.clone() for k, v in batch.items()})
        return scored(model, output_layer, batch)

    monkeypatch.setattr(loop, "label_nll", record)
    train_adapter(recipe, run, _ignore)
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    answers = dict(MIXED)
    questions = []
    for batch in seen:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            trained = labels != loop.IGNORED
            text = tokenizer.decode(ids)
            question = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
            assert tokenizer.decode(labels[trained]) == answers[question] + "<|im_end|>"
            assert torch.equal(labels[trained], ids[trained])
            questions.append(question)
    assert sorted(questions) == sorted(answers)


@pytest.mark.parametrize(("accumulation", "n_steps"), [(1, 20), (3, 7)])
def test_loss_and_weights_equal_trl_scoring_every_position(
    bench: Bench, accumulation: int, n_steps: int
) -> None:
    batch = {"per_device": 2, "accumulation": accumulation}
    recipe, run, order = _set_up(bench, n_steps=n_steps, batch=batch, learning_rate=1e-3)
    losses: dict[str, list[float]] = {"ours": [], "trl": []}
    ours = build_trainer(recipe, run, order, lambda s, n, f: losses["ours"].append(f["loss"]))
    plain = SFTTrainer(
        model=load_base(run.base, recipe, "cpu"),
        args=trainer_settings(recipe, run, len(order)),
        train_dataset=ours.train_dataset,
        processing_class=ours.processing_class,
        peft_config=lora_config(recipe.lora),
        callbacks=[loop.StepReporter(lambda s, n, f: losses["trl"].append(f["loss"]))],
    )
    first, second = _weights(ours), _weights(plain)
    assert all(torch.equal(first[k], second[k]) for k in first)
    ours.train()
    plain.train()
    assert len(losses["ours"]) == n_steps
    assert losses["ours"] == pytest.approx(losses["trl"], rel=1e-4)
    trained, expected = _weights(ours), _weights(plain)
    assert trained.keys() == expected.keys()
    for name, weight in trained.items():
        # Adam's first steps are lr * sign(gradient): rounding shows where a gradient is almost zero.
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=0.02 * recipe.learning_rate)
    assert any(not torch.equal(first[name], trained[name]) for name in first)


def test_first_loss_equals_the_mean_log_probability_computed_by_hand(bench: Bench) -> None:
    recipe, run, order = _set_up(bench, n_steps=1, batch={"per_device": 6})
    figures: list[dict[str, float]] = []
    trainer = build_trainer(recipe, run, order, lambda s, n, f: figures.append(f))
    model = load_base(run.base, recipe, "cpu")
    total, count = 0.0, 0
    for example in run.examples.train:
        ids = torch.tensor([example.encoded.input_ids])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        for t, scored in enumerate(example.encoded.loss_mask):
            if scored:
                total, count = total - float(logprobs[t - 1, ids[0, t]]), count + 1
    trainer.train()
    assert figures[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_output_layer_runs_on_label_positions_alone(bench: Bench) -> None:
    recipe, run, order = _set_up(bench, n_steps=1, batch={"per_device": 6})
    trainer = build_trainer(recipe, run, order, _ignore)
    widths: list[int] = []
    trainer.model.get_output_embeddings().register_forward_hook(
        lambda m, i, o: widths.append(o.shape[0] * o.shape[1])
    )
    trainer.train()
    assert sum(widths) == sum(e.encoded.n_supervised for e in run.examples.train)


def test_adapter_weights_are_fp32_on_a_bfloat16_base(bench: Bench) -> None:
    recipe, run, order = _set_up(bench, precision="bf16")
    trainer = build_trainer(recipe, run, order, _ignore)
    types = {(p.requires_grad, p.dtype) for p in trainer.model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}


def test_bfloat16_training_follows_fp32_training(bench: Bench) -> None:
    curves: dict[str, list[float]] = {}
    for precision in ("fp32", "bf16"):
        recipe, run, _ = _set_up(
            bench, precision=precision, n_steps=20, batch={"per_device": 6}, learning_rate=2e-3
        )
        losses = curves.setdefault(precision, [])
        train_adapter(recipe, run, lambda s, n, f, losses=losses: losses.append(f["loss"]))
    assert curves["bf16"] == pytest.approx(curves["fp32"], rel=0.05)
    assert curves["bf16"][-1] < 0.7 * curves["bf16"][0]


def test_trainer_sends_no_telemetry(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer import base_trainer

    sent: list[str] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *a, **k: sent.append(str(k)))
    recipe, run, order = _set_up(bench)
    plain_args = trainer_settings(recipe, run, len(order))
    trainer = build_trainer(recipe, run, order, _ignore)
    assert sent == []
    SFTTrainer(
        model=load_base(run.base, recipe, "cpu"),
        args=plain_args,
        train_dataset=trainer.train_dataset,
        processing_class=trainer.processing_class,
        peft_config=lora_config(recipe.lora),
    )
    assert len(sent) == 1, "TRL itself no longer reports here: this test proves nothing any more"


def test_loss_that_is_not_finite_ends_the_run_at_its_step(bench: Bench) -> None:
    recipe, run, _ = _set_up(bench, n_steps=50, learning_rate=1e30)
    with pytest.raises(TrainingFailed, match=r"step \d+ of 50: .*(nan|inf).*; lower learning_rate"):
        train_adapter(recipe, run, _ignore)
    assert not run.adapter.exists()


def test_held_out_loss_is_that_of_the_held_out_rows(bench: Bench) -> None:
    recipe, run, _ = _set_up(bench, held_out_frac=0.5, n_steps=1, batch={"per_device": 2})
    assert len(run.examples.held_out) == 3
    figures = train_adapter(recipe, run, _ignore)
    model = load_base(run.base, recipe, "cpu")
    total, count = 0.0, 0
    for example in run.examples.held_out:
        ids = torch.tensor([example.encoded.input_ids])
        labels = [t if m else -100 for t, m in zip(ids[0].tolist(), example.encoded.loss_mask, strict=True)]
        with torch.no_grad():
            loss = model(input_ids=ids, labels=torch.tensor([labels])).loss
        total, count = (
            total + float(loss) * example.encoded.n_supervised,
            count + example.encoded.n_supervised,
        )
    assert figures["held_out_loss_base"] == pytest.approx(total / count, rel=1e-4)
    assert figures["held_out_loss"] != figures["held_out_loss_base"]


@pytest.mark.walk
def test_same_recipe_gives_the_same_adapter_in_another_process(bench: Bench) -> None:
    """Hash seeds and the order of imports differ between processes; the adapter's digest must not."""
    settings: dict[str, Any] = {"lora": {"dropout": 0.1}, "precision": "bf16", "batch": {"per_device": 2}}
    path = bench.recipe(n_steps=6, **settings)
    code = """
import sys
from pathlib import Path
from llmops.settings import find_workspace
from llmops.train.finetune import finetune
print(finetune(Path(sys.argv[1]), find_workspace(Path(sys.argv[1]).parent)).adapter)
"""
    env = {**os.environ, "PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there, here = done.stdout.split()[-1], finetune(path, bench.workspace).adapter
    assert there == here
    assert finetune(bench.recipe(n_steps=6, seed=1, **settings), bench.workspace).adapter != here


def test_four_bit_base_trains_an_fp32_adapter(bench: Bench) -> None:
    pytest.importorskip("bitsandbytes")
    recipe, run, order = _set_up(
        bench, quantization="nf4", precision="bf16", n_steps=20, batch={"per_device": 6}
    )
    trainer = build_trainer(recipe, run, order, _ignore)
    names = {type(m).__name__ for m in trainer.model.modules()}
    assert "Linear4bit" in names
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    losses: list[float] = []
    figures = train_adapter(recipe, run, lambda s, n, f: losses.append(f["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert math.isfinite(figures["train_loss"])
    assert (run.adapter / "adapter_model.safetensors").is_file()


def test_four_bits_without_bitsandbytes_says_what_to_install(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    recipe = load_recipe(bench.recipe(quantization="nf4", precision="bf16"))
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        require_means(recipe, "cpu")


def test_gradient_checkpointing_changes_memory_not_weights(bench: Bench) -> None:
    weights = []
    for on in (False, True):
        recipe, run, order = _set_up(bench, gradient_checkpointing=on, n_steps=3)
        trainer = build_trainer(recipe, run, order, _ignore)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing is on
        weights.append(_weights(trainer))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-4, atol=1e-6)


def test_contract_of_the_recipe_reaches_the_training_text(bench: Bench) -> None:
    _, run, _ = _set_up(bench, system="Be brief.")
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    assert read_contract(Path(bench.base)).system is None
    texts = [tokenizer.decode(e.encoded.input_ids) for e in run.examples.train]
    assert all(text.startswith("<|im_start|>system\nBe brief.<|im_end|>") for text in texts)


def test_first_of_several_cuda_devices_is_chosen_and_a_cpu_machine_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("cpu") == "cpu"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert pick_device("auto") == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert pick_device("cuda") == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize(
    ("able", "quantization", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False}, "none", "fp32"),
        ({"avx512_bf16": True}, "none", "bf16"),
        ({"amx_bf16": True}, "none", "bf16"),
        ({"bf16": True}, "none", "bf16"),  # ARM
        ({"avx2": True}, "nf4", "bf16"),
    ],
)
def test_precision_follows_what_the_processor_multiplies_in(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], quantization: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    recipe = load_recipe(bench.recipe(precision="auto", quantization=quantization))
    assert pick_precision(recipe, "cpu") == expected
    asked = load_recipe(bench.recipe(precision="bf16"))
    assert pick_precision(asked, "cpu") == "bf16"
    if quantization == "none":
        path = bench.recipe(precision=None)
        folder = bench.root / "planned"
        folder.mkdir()
        assert plan(path, bench.workspace, folder, no_progress).resolved["precision"] == expected
