"""Documents that share a row stay apart: their batch, an attention that never crosses them, and a proof on the model.

Positions restart with every document. Attention is kept inside it in one of two ways: transformers' masks, which
follow the positions (eager, sdpa, flex; flash attention reads the boundaries from the batch), or `attend_in_documents`,
which reads each document alone and so spends nothing on pairs of tokens of different documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmops.errors import ConfigError
from llmops.train.cross_entropy import IGNORED

IN_DOCUMENTS = "llmops_documents"  # the name of `attend_in_documents` among transformers' attentions
CAUSAL = (-1, 0)  # window of tokens seen: all before, none after
# In standard deviations of the logits. Closed boundaries give exactly 0; rounding alone, bfloat16 and 30 layers, 0.02;
# an open boundary, or positions that go on, more than 0.3.
LEAK, ROUNDING = 1e-4, 0.1


@dataclass(frozen=True)
class PackedCollator:
    """Packed rows (`input_ids`, `labels`, and `seq_lengths`: tokens of each document) as one batch of B rows.

    Returns input_ids, labels and position_ids, each [B, T], and the boundaries of documents in the B * T tokens as
    flash attention takes them. The padding behind a row's last document is a document of its own.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        """Put rows together; the first token of a document has no label, as nothing before it may predict it."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_token_id)
        labels, positions = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        sizes: list[int] = []
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            own = [*row["seq_lengths"], longest - n] if n < longest else row["seq_lengths"]
            ids[i, :n], labels[i, :n] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
            positions[i] = torch.cat([torch.arange(size) for size in own])
            sizes += own
        labels[positions == 0] = IGNORED
        ends = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)
        return {
            "input_ids": ids,
            "labels": labels,
            "position_ids": positions,
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": max(sizes),
            "max_length_k": max(sizes),
        }


def attend_in_documents(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document; transformers' contract for attentions.

    On a CUDA device in 16 bits this is torch's flash attention over variable lengths; elsewhere each document is
    attended to by itself. Batches without boundaries (rows of one document, padded on the right) go the usual way.

    Args:
        module: the attention layer.
        query: [B, heads, T, D].
        key: [B, key-value heads, T, D].
        value: like `key`.
        attention_mask: none is made for this attention.
        settings: `scaling`, `dropout`, and what the collator gives of boundaries.

    Raises:
        NotImplementedError: the layer asks for a window, a soft cap or sinks, which are not done here.
    """
    odd = [name for name in ("sliding_window", "softcap", "s_aux") if settings.get(name) is not None]
    if odd or settings.get("dropout"):
        raise NotImplementedError(
            f"{type(module).__name__}: attention with {odd or 'dropout'} is not done here"
        )
    ends = settings.get("cu_seq_lens_q")
    if ends is None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **settings
        )
        return found
    scale = settings.get("scaling")
    q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))  # [B * T, heads, D]
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        longest = int(settings["max_length_q"])
        together = varlen_attn(
            q, k, v, ends, ends, longest, longest, scale=scale, window_size=CAUSAL, enable_gqa=True
        )
    else:
        shared = q.shape[1] // k.shape[1]
        k, v = (states.repeat_interleave(shared, dim=1) if shared > 1 else states for states in (k, v))
        together = torch.cat([_attend(q[a:b], k[a:b], v[a:b], scale) for a, b in pairwise(ends.tolist())])
    return together.view(query.shape[0], query.shape[2], *together.shape[1:]), None


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Causal attention over one document, each [n, heads, D]."""
    q, k, v = (states.transpose(0, 1).unsqueeze(0) for states in (q, k, v))
    found: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale
    )
    return found[0].transpose(0, 1)


AttentionInterface.register(IN_DOCUMENTS, attend_in_documents)


def can_attend_in_documents(config: Any) -> bool:
    """Whether a model's layers all attend plainly: no windows, soft caps or other kinds of layers."""
    text = config.get_text_config()
    plain = set(getattr(text, "layer_types", None) or ()) <= {"full_attention"}
    odd = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size")
    return plain and all(getattr(text, name, None) is None for name in odd) and not text.attention_dropout


@torch.no_grad()  # type: ignore[untyped-decorator]
def require_apart(model: Any, vocab_size: int, where: str) -> None:
    """Prove on the model itself, as it will train, that documents of one row do not see one another.

    Two documents are read in one row, in either order. What the second says must not change when the first is another
    one (whatever might carry it over: attention, convolution, state), and either must say what it says alone (its
    positions restart).

    Args:
        model: causal language model, in the mode and arithmetic it will train in.
        vocab_size: ids below it are read.
        where: for the message: the recipe's name.

    Raises:
        ConfigError: they do; this base cannot be packed.
    """
    draw = torch.Generator().manual_seed(0)
    first, second, other = (torch.randint(vocab_size, (n,), generator=draw).tolist() for n in (24, 17, 24))
    pairs = ([first, second], [other, second], [second, first])
    (a, b), (_, b_after_other), (b_first, a_last) = (_say(model, pair) for pair in pairs)
    (a_alone,), (b_alone,) = _say(model, [first]), _say(model, [second])
    seen = _distance(b, b_after_other)
    moved = max(_distance(x, a_alone) for x in (a, a_last)), max(_distance(x, b_alone) for x in (b, b_first))
    if seen > LEAK or max(moved) > ROUNDING:
        what = (
            f"changes by {seen:.3g} with the document before it"
            if seen > LEAK
            else (f"is {max(moved):.3g} from what it says alone")
        )
        raise ConfigError(
            f"{where}: batch.packing: a document {what} (in standard deviations of its logits), so this base does not "
            "keep documents apart; set packing: false"
        )


def _say(model: Any, documents: list[list[int]]) -> list[torch.Tensor]:
    """Logits of each document, [n, V], with all of them in one row."""
    ids = [token for document in documents for token in document]
    row = {"input_ids": ids, "labels": ids, "seq_lengths": [len(document) for document in documents]}
    device = next(model.parameters()).device
    batch = {
        name: part.to(device) if isinstance(part, torch.Tensor) else part
        for name, part in PackedCollator(0)([row]).items()
        if name != "labels"
    }
    return list(model(**batch, use_cache=False).logits[0].float().split(row["seq_lengths"]))


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.std())
