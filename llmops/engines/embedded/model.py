"""The base model on its device: loading, and one forward pass over a left-padded block of rows.

Used from the worker thread alone, except for the tokenizer, which the HTTP side uses too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmops.engines.embedded.adapters import AdapterBank
from llmops.engines.embedded.attention import group_attention
from llmops.engines.embedded.cache import KVBlock
from llmops.engines.embedded.grammar import Grammars
from llmops.engines.embedded.packed import can_pack, pack_linears
from llmops.errors import EngineFailed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True)
class ModelSpec:
    """What to load; `max_model_len` 0 is the model's own limit, `chat_template` None the tokenizer's own."""

    path: Path
    served_name: str
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int = 0
    max_loras: int = 8
    chat_template: Path | None = None


class LanguageModel:
    """The weights, the tokenizer, the end-of-sequence ids and the adapters of one engine."""

    def __init__(self, spec: ModelSpec) -> None:
        """Load from local files only.

        Raises EngineFailed where the folder is not a complete causal language model, is of a kind whose state
        is not a plain key-value cache, or asks for a device this machine lacks.
        """
        self.spec = spec
        self.device = _pick_device(spec.device)
        config = _load(AutoConfig, spec.path, "config")
        _check_attention_only(spec.path, config)
        self.max_model_len = _context_limit(spec, config)
        self.tokenizer = _load(AutoTokenizer, spec.path, "tokenizer")
        if spec.chat_template is not None:
            self.tokenizer.chat_template = spec.chat_template.read_text(encoding="utf-8")
        net = _load(AutoModelForCausalLM, spec.path, "weights", dtype=DTYPES[spec.dtype])
        self.net = net.to(self.device).eval().requires_grad_(False)
        self.dtype: torch.dtype = net.dtype
        group_attention(self.net)
        if can_pack(self.device, self.dtype):
            pack_linears(self.net)
        self.vocab_size = int(net.get_input_embeddings().weight.shape[0])
        self.eos_ids = _eos_ids(self.tokenizer, net)
        self.pad_id = min(self.eos_ids, default=0)
        self.grammars = Grammars(self.tokenizer, self.vocab_size, self.eos_ids)
        self.adapters = AdapterBank(self.net, spec.max_loras)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def forward(
        self, token_ids: list[list[int]], block: KVBlock, adapters: list[str], keep: int
    ) -> torch.Tensor:
        """Append T tokens to each row of `block` and return fp32 logits of the last `keep` positions.

        `token_ids` is [B, T]; `block.lengths` counts the real tokens of each row *after* this call, so that
        what does not fit into them is padding on the left. `adapters` names one bank entry a row. Returns [B,
        keep, V].
        """
        ids = torch.tensor(token_ids, device=self.device)
        width = block.width + ids.shape[1]
        padding = torch.tensor([width - n for n in block.lengths], device=self.device).unsqueeze(1)
        columns = torch.arange(width, device=self.device).unsqueeze(0)
        positions = (columns[:, block.width :] - padding).clamp(min=0)
        mask = (columns >= padding).long() if any(n < width for n in block.lengths) else None
        with self.adapters.routed(adapters):
            output = self.net(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=block.cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        logits: torch.Tensor = output.logits
        return logits.float()


def _load(loader: Any, path: Path, what: str, dtype: Any = None) -> Any:
    """Call a transformers loader on local files; raises EngineFailed with its first line of complaint."""
    options = {} if dtype is None else {"dtype": dtype}
    try:
        return loader.from_pretrained(path, local_files_only=True, **options)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise EngineFailed(
            f"{path}: the model's {what} cannot be loaded ({type(error).__name__}: {reason}); "
            "give a folder written by save_pretrained"
        ) from error


def _check_attention_only(path: Path, config: Any) -> None:
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if not kinds <= SUPPORTED_LAYERS:
        raise EngineFailed(
            f"{path}: layers of kind {', '.join(sorted(kinds - SUPPORTED_LAYERS))} keep state that rows "
            "cannot join or leave; serve this model with the vllm engine"
        )


def _context_limit(spec: ModelSpec, config: Any) -> int:
    own = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 0)
    if spec.max_model_len > own > 0:
        raise EngineFailed(
            f"{spec.path}: --max-model-len {spec.max_model_len} is over the model's {own} positions; lower it"
        )
    return spec.max_model_len or own or 2048


def _pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise EngineFailed("--device cuda: torch sees no CUDA device; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _eos_ids(tokenizer: Any, net: Any) -> frozenset[int]:
    """End-of-sequence ids of the tokenizer and of generation_config.json together, as vLLM takes them."""
    declared = net.generation_config.eos_token_id
    ids = declared if isinstance(declared, list) else [declared]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
