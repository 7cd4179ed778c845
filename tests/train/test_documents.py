"""Documents in one row are trained on as if each had a row of its own, whatever the attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model_state_dict
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
)
from trl import SFTTrainer
from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.errors import ConfigError
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.schema import no_progress
from llmops.settings import Workspace
from llmops.train import documents, loop
from llmops.train.documents import IN_DOCUMENTS, PackedCollator, can_attend_in_documents, require_apart
from llmops.train.loop import IGNORED, question, token_nll
from llmops.train.methods.sft import build_trainer, rows_in_order, train_adapter, trainer_settings
from llmops.train.model import lora_config
from llmops.train.recipe import Recipe, load_recipe
from llmops.train.rows import Example, encode_rows, read_source
from llmops.train.session import Session
from tests.train.support import Bench

ATTENTIONS = ("eager", "sdpa", IN_DOCUMENTS)
DOCUMENTS = [[(37 * i + 11 * j) % 256 for j in range(n)] for i, n in enumerate((19, 7, 1, 12, 30, 2))]
ROWS = [[4, 1, 2], [0, 3, 5]]  # 38 and 33 tokens
PAIRS = tuple(
    (f"What does f{i} do?" + "?" * (3 * i % 7), f"Return {i}." + "!" * (5 * i % 11)) for i in range(12)
)


def _packed(documents: list[list[int]], rows: list[list[int]] = ROWS) -> dict[str, Any]:
    """A batch in which every token carries a label, even the first of each document."""
    joined = [[token for i in row for token in documents[i]] for row in rows]
    sizes = [[len(documents[i]) for i in row] for row in rows]
    return PackedCollator(0)(
        [
            {"input_ids": ids, "labels": ids, "seq_lengths": own}
            for ids, own in zip(joined, sizes, strict=True)
        ]
    )


def _losses(model: Any, documents: list[list[int]]) -> list[torch.Tensor]:
    """Each document's losses by token, read packed."""
    found = token_nll(model, model.get_output_embeddings(), question(_packed(documents)))
    sizes = [len(documents[i]) - 1 for row in ROWS for i in row]
    by_row = dict(zip([i for row in ROWS for i in row], found.split(sizes), strict=True))
    return [by_row[i] for i in range(len(documents))]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_document_of_a_row_has_the_losses_and_gradient_it_has_alone(
    tiny_model: Path, attention: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention)
    model.requires_grad_(False)
    learnt = model.model.layers[0].self_attn.k_proj.weight.requires_grad_()
    found = _losses(model, DOCUMENTS)
    (gradient,) = torch.autograd.grad(torch.cat(found).sum(), learnt)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager").requires_grad_(
        False
    )
    other = plain.model.layers[0].self_attn.k_proj.weight.requires_grad_()
    alone = []
    for ids in DOCUMENTS:
        logits = plain(input_ids=torch.tensor([ids])).logits[0, :-1]
        alone.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids)[1:], reduction="none"))
    for mine, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)
    (expected_gradient,) = torch.autograd.grad(torch.cat(alone).sum(), other)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_poisoned_document_changes_no_other_documents_loss_by_one_bit(
    tiny_model: Path, attention: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention).requires_grad_(
        False
    )
    before = _losses(model, DOCUMENTS)
    for poisoned in range(len(DOCUMENTS)):
        changed = [[(t + 91) % 256 for t in ids] if i == poisoned else ids for i, ids in enumerate(DOCUMENTS)]
        for i, loss in enumerate(_losses(model, changed)):
            if i != poisoned:
                assert torch.equal(loss, before[i])
            elif len(DOCUMENTS[i]) > 1:
                assert not torch.allclose(loss, before[i])


def test_no_label_crosses_a_boundary_and_padding_has_none() -> None:
    batch = _packed(DOCUMENTS)
    asked = question(batch)
    starts = set(batch["cu_seq_lens_q"].tolist())
    predicted = {38 * r + c + 1 for r, c in zip(asked.rows.tolist(), asked.columns.tolist(), strict=True)}
    assert predicted == set(range(38 + 33)) - starts
    assert batch["position_ids"][1, 33:].tolist() == [0, 1, 2, 3, 4]
    assert (batch["labels"][1, 33:] == IGNORED).all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_proof_before_training_accepts_models_that_keep_documents_apart(
    tiny_model: Path, attention: str
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention, dtype=dtype)
        require_apart(model, 258, "tiny")


def test_the_proof_refuses_a_model_whose_state_runs_through() -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=258, hidden_size=32, num_hidden_layers=1, state_size=8, expand=2)
    )
    with pytest.raises(ConfigError, match=r"tiny: batch\.packing: .*set packing: false"):
        require_apart(model.eval(), 258, "tiny")


@pytest.mark.parametrize("kept", ["boundaries", "positions"])
def test_the_proof_refuses_open_boundaries_and_positions_that_go_on(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """A collator that forgets one of the two things that documents need."""
    plain = PackedCollator.__call__

    def forgetful(self: PackedCollator, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        batch = plain(self, rows)
        if kept == "boundaries":
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None] ** 2
            return batch
        return {name: batch[name] for name in ("input_ids", "labels", "position_ids")}

    monkeypatch.setattr(PackedCollator, "__call__", forgetful)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=IN_DOCUMENTS)
    with pytest.raises(ConfigError, match="from what it says alone" if kept == "boundaries" else "before it"):
        require_apart(model, 258, "tiny")


def test_attention_in_documents_is_for_plain_layers_alone(tiny_model: Path) -> None:
    assert can_attend_in_documents(AutoConfig.from_pretrained(tiny_model))
    assert not can_attend_in_documents(MistralConfig(sliding_window=64))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
            attention_dropout=0.5, attn_implementation=IN_DOCUMENTS,
        )
    )  # fmt: skip
    assert not can_attend_in_documents(model.config)
    with pytest.raises(NotImplementedError, match="dropout is not done here"):
        model.train()(input_ids=torch.tensor([[1, 2]]))


def _set_up(bench: Bench, **changes: Any) -> tuple[Recipe, Session[Example]]:
    bench.rows(PAIRS)
    recipe = load_recipe(bench.recipe(**changes))
    base = resolve_base(str(bench.base))
    source = read_source(recipe.data, recipe.name, bench.root, Registry.of(bench.workspace))
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    examples = encode_rows(source, recipe, tokenizer, recipe.contract_on(base.contract), no_progress)
    return recipe, Session(base, examples, "cpu", bench.root / "scratch", bench.root / "adapter")


def _curve(recipe: Recipe, session: Session[Example]) -> list[float]:
    losses: list[float] = []
    train_adapter(recipe, session, lambda s, n, f: losses.append(f["loss"]))
    return losses


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_packed_training_equals_unpacked_training_on_the_same_documents(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    """All twelve documents are in every step, so that both runs learn the same from them."""
    plain = {"per_device": 12, "group_by_length": False}
    unpacked = _curve(*_set_up(bench, batch=plain, n_steps=6, learning_rate=1e-3))
    monkeypatch.setattr("llmops.train.model.attention_of", lambda base, recipe, device: attention)
    recipe, session = _set_up(
        bench, batch={"per_device": 3, "packing": True, "pack_tokens": 400}, n_steps=6, learning_rate=1e-3
    )
    rows = rows_in_order(recipe, [e.n_tokens for e in session.examples.train])
    assert len(rows) == 18
    assert [len({i for row in rows[s : s + 3] for i in row}) for s in range(0, 18, 3)] == [12] * 6
    assert _curve(recipe, session) == pytest.approx(unpacked, rel=1e-5)


def test_packed_training_equals_trls_own_packing(bench: Bench) -> None:
    recipe, session = _set_up(
        bench, batch={"per_device": 3, "packing": True, "pack_tokens": 400}, n_steps=6, learning_rate=1e-3
    )
    losses: list[float] = []
    rows = rows_in_order(recipe, [e.n_tokens for e in session.examples.train])
    ours = build_trainer(recipe, session, rows, lambda s, n, f: losses.append(f["loss"]))
    start = {k: v.clone() for k, v in get_peft_model_state_dict(ours.model).items()}
    settings = trainer_settings(recipe, session, len(rows))
    settings.packing, settings.packing_strategy, settings.dataset_kwargs, settings.max_length = (
        True,
        "bfd",
        None,
        400,
    )
    encoded = [e.encoded for e in session.examples.train]
    labels = [[t if m else IGNORED for t, m in zip(e.input_ids, e.loss_mask, strict=True)] for e in encoded]
    plain_losses: list[float] = []
    plain = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(bench.base, attn_implementation="sdpa"),
        args=settings,
        train_dataset=Dataset.from_dict(
            {"input_ids": [list(e.input_ids) for e in encoded], "labels": labels}
        ),
        processing_class=ours.processing_class,
        peft_config=lora_config(recipe.lora),
        callbacks=[loop.StepReporter(lambda s, n, f: plain_losses.append(f["loss"]))],
    )
    assert len(plain.train_dataset) == 3  # TRL finds as many rows
    assert all(torch.equal(v, start[k]) for k, v in get_peft_model_state_dict(plain.model).items())
    ours.train()
    plain.train()
    assert losses == pytest.approx(plain_losses, rel=1e-5)


def test_packing_is_asked_for_in_the_recipe_and_shows_in_the_registered_run(
    bench: Bench, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.rows(PAIRS)
    monkeypatch.chdir(workspace.root)
    path = bench.recipe(
        batch={"per_device": 2, "packing": True, "pack_tokens": 400},
        n_steps=None,
        n_epochs=3,
        held_out_frac=0.2,
    )
    done = CliRunner().invoke(app, ["finetune", str(path)])
    assert done.exit_code == 0, done.output
    (run,) = workspace.runs.iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    end = lines[-1]
    assert (
        end["n_steps"] == len(lines) - 1 == 5
    )  # ten documents pack into three rows: nine rows, and one to fill a step
    assert 3.0 < end["n_epochs"] < 3.5
    assert end["padding_frac"] < 0.2
    assert end["held_out_loss"] < end["held_out_loss_base"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": {"pack_tokens": 512}}, "pack_tokens: does nothing without packing"),
        ({"batch": {"packing": True, "pack_tokens": 255}}, "pack_tokens: 255 is less than max_tokens 256"),
        (
            {
                "batch": {"packing": True},
                "method": {"kind": "dpo"},
                "data": {"kind": "preferences", "name": "x"},
            },
            "packing: is for method sft, not dpo",
        ),
    ],
)
def test_packing_that_cannot_be_is_refused(bench: Bench, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(bench.recipe(**changes))


def test_variable_length_kernel_is_torchs_own() -> None:
    assert documents.varlen_attn.__module__ == "torch.nn.attention.varlen"
