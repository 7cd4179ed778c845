"""Attention of padded rows: what transformers' own gives, without a copy of keys and values for every query head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.integrations import sdpa_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmops.engines.embedded.adapters import BASE
from llmops.engines.embedded.attention import attend_grouped
from llmops.engines.embedded.cache import KVBlock
from llmops.engines.embedded.model import LanguageModel, ModelSpec
from tests.tiny import build_tiny_model


class Heads(torch.nn.Module):  # type: ignore[misc]
    """What transformers' attention reads of a layer."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = True


@pytest.mark.parametrize("n_tokens", [1, 7])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_transformers_own_numbers_to_the_bit(
    n_tokens: int, groups: int, padded: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    width = 40
    query = torch.randn(5, 2 * groups, n_tokens, 16, dtype=dtype)
    key, value = (torch.randn(5, 2, width, 16, dtype=dtype) for _ in range(2))
    mask = None
    if padded:
        columns = torch.arange(width)
        seen = columns <= (width - n_tokens + torch.arange(n_tokens))[:, None]
        mask = (seen & (columns >= torch.arange(5)[:, None, None])).unsqueeze(1)
    layer = Heads(groups)
    options = {"dropout": 0.0, "scaling": 0.25}
    ours, none = attend_grouped(layer, query, key, value, mask, **options)
    theirs, _ = sdpa_attention_forward(layer, query, key, value, mask, **options)
    assert none is None
    assert torch.equal(ours, theirs)


def test_a_step_of_padded_rows_copies_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.Size] = []

    def repeated(states: torch.Tensor, times: int) -> torch.Tensor:
        copied.append(states.shape)
        return states.repeat_interleave(times, dim=1)

    monkeypatch.setattr(sdpa_attention, "repeat_kv", repeated)
    model = LanguageModel(ModelSpec(build_tiny_model(tmp_path / "model"), "m", "float32", "cpu"))

    def logits() -> torch.Tensor:
        block = KVBlock([0, 0])
        block.lengths = [9, 5]
        model.forward([[5] * 9, [6] * 9], block, [BASE, BASE], 1)
        block.lengths = [10, 6]
        return model.forward([[7], [7]], block, [BASE, BASE], 1)

    ours = logits()
    assert copied == []
    model.net.set_attn_implementation("sdpa")
    assert torch.equal(logits(), ours)
    assert copied
