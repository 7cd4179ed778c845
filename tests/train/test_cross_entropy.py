"""Cross entropy in chunks against torch's own over all logits, in value and in gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from llmops.train import cross_entropy, loop
from llmops.train.cross_entropy import chunked_nll, labels_at_once
from llmops.train.loop import label_nll, question, row_logprobs, token_nll

IDS = torch.tensor([[5, 9, 70, 33, 80, 101, 7, 64], [8, 3, 44, 32, 90, 99, 257, 257]])
LABELS = torch.tensor([[-100, -100, 70, 33, 80, 101, 7, 64], [-100, 3, 44, -100, 90, 99, 257, -100]])
WEIGHTS = torch.linspace(
    -1.0, 2.0, 11
)  # what the labels' losses are multiplied by: each gradient must find its own


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four labels of the tiny model's 258 tokens at a time: eleven labels need three chunks, the last one broken."""
    monkeypatch.setitem(cross_entropy.LOGITS_AT_ONCE, "cpu", 4 * 258 + 17)


@pytest.mark.parametrize("n_at_once", [1, 3, 7, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_give_torchs_loss_and_gradient(n_at_once: int, bias: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=bias).requires_grad_(False)
    hidden, targets = torch.randn(7, 16, requires_grad=True), torch.randint(50, (7,))
    slope = torch.randn(7)
    found = chunked_nll(hidden, head, targets, n_at_once)
    (gradient,) = torch.autograd.grad(found, hidden, slope)
    expected = F.cross_entropy(head(hidden), targets, reduction="none")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, hidden, slope)[0])


def test_gradient_of_chunks_is_that_of_finite_differences() -> None:
    torch.manual_seed(1)
    head = torch.nn.Linear(6, 11).requires_grad_(False).double()
    hidden = torch.randn(5, 6, dtype=torch.float64)
    targets, step = torch.randint(11, (5,)), 1e-3
    hidden.requires_grad_()
    (gradient,) = torch.autograd.grad(chunked_nll(hidden, head, targets, 2).sum(), hidden)
    moved = torch.zeros_like(hidden)
    for i in range(5):
        for j in range(6):
            change = torch.zeros_like(hidden)
            change[i, j] = step
            ahead, behind = (
                F.cross_entropy(head(hidden.detach() + sign * change), targets, reduction="sum")
                for sign in (1, -1)
            )
            moved[i, j] = (ahead - behind) / (2 * step)
    torch.testing.assert_close(gradient, moved, rtol=1e-3, atol=1e-4)


def test_no_labels_cost_nothing_and_still_have_a_gradient() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    loss = chunked_nll(hidden, torch.nn.Linear(4, 9).requires_grad_(False), torch.zeros(0).long(), 2).sum()
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert hidden.grad is not None


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_models_losses_in_chunks_equal_those_of_all_its_logits(tiny_model: Path, precision: str) -> None:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype).requires_grad_(False)
    learnt = model.model.layers[0].mlp.up_proj.weight.requires_grad_()
    head = model.get_output_embeddings()
    batch = {"input_ids": IDS, "labels": LABELS}
    assert labels_at_once(head) == 4
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        found = token_nll(model, head, question(batch))
    (gradient,) = torch.autograd.grad((WEIGHTS * found).sum(), learnt)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits = model(input_ids=IDS).logits[:, :-1].float()
    expected = F.cross_entropy(logits.transpose(1, 2), LABELS[:, 1:], reduction="none")[LABELS[:, 1:] != -100]
    (slope,) = torch.autograd.grad((WEIGHTS * expected).sum(), learnt)
    exact = precision == "fp32"
    torch.testing.assert_close(found, expected, rtol=1e-5 if exact else 0.02, atol=1e-5 if exact else 0.02)
    error = float((gradient.float() - slope.float()).norm() / slope.float().norm())
    assert error < (1e-5 if exact else 0.02)


@pytest.mark.usefixtures("small_chunks")
def test_output_layer_sees_each_label_once_and_never_more_than_a_chunk(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    head, seen = model.get_output_embeddings(), []
    head.register_forward_hook(lambda m, i, o: seen.append(o.shape[:-1].numel()))
    total, n_labels = label_nll(model, head, {"input_ids": IDS, "labels": LABELS})
    assert seen == [1, 1, 4, 4, 3]  # the first label once more, twice: the model's own logits and the layer's
    assert n_labels == 11
    logprobs, sizes = row_logprobs(model, head, {"input_ids": IDS, "labels": LABELS})
    assert sizes.tolist() == [6, 5]
    assert float(-logprobs.sum()) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.usefixtures("small_chunks")
def test_a_model_that_caps_its_logits_is_scored_with_the_cap() -> None:
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=258, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.05,
        )
    )  # fmt: skip
    model.requires_grad_(False)
    found = token_nll(model, model.get_output_embeddings(), question({"input_ids": IDS, "labels": LABELS}))
    logits = model(input_ids=IDS).logits[:, :-1]
    expected = F.cross_entropy(logits.transpose(1, 2), LABELS[:, 1:], reduction="none")
    torch.testing.assert_close(found, expected[LABELS[:, 1:] != -100])
    uncapped = model.lm_head(model.model(input_ids=IDS).last_hidden_state)[:, :-1]
    other = F.cross_entropy(uncapped.transpose(1, 2), LABELS[:, 1:], reduction="none")
    assert not torch.allclose(found, other[LABELS[:, 1:] != -100], atol=1e-3)


@pytest.mark.usefixtures("small_chunks")
def test_a_model_that_caps_its_logits_unannounced_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    plain = model.forward

    def capped(**inputs: torch.Tensor) -> object:
        out = plain(**inputs)
        out.logits = 5 * torch.tanh(out.logits / 5)
        return out

    monkeypatch.setattr(model, "forward", capped)
    with pytest.raises(RuntimeError, match="not what its output layer says"):
        label_nll(model, model.get_output_embeddings(), {"input_ids": IDS, "labels": LABELS})


def test_padding_on_the_right_needs_no_mask(tiny_model: Path) -> None:
    for attention in ("eager", "sdpa"):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention)
        short = {"input_ids": IDS[1:, :6], "labels": LABELS[1:, :6]}
        padded = torch.nn.functional.pad(IDS[1:, :6], (0, 3), value=77)
        mask = torch.tensor([[1] * 6 + [0] * 3])
        long = {"input_ids": padded, "labels": torch.nn.functional.pad(LABELS[1:, :6], (0, 3), value=-100)}
        losses = [
            float(label_nll(model, model.get_output_embeddings(), batch)[0])
            for batch in (short, long | {"attention_mask": mask}, loop.unmasked(long))
        ]
        assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)
