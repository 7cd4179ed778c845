"""Which adapters vLLM would refuse, or serve as something else than was trained: told before training and at
import.

Reads the adapter's configuration alone (PEFT's `adapter_config.json`, or the same fields of a planned
LoraConfig). That the weights then do what they should is the business of `proof`. Follows vLLM 0.32.0
(`vllm/lora/peft_helper.py`, `lora_model.py`, `utils.py`) and PEFT 0.21; the vllm tier compares the verdicts
with vLLM's own over a table of configurations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmops.engines.vllm import LORA_RANKS
from llmops.errors import BadRequest

DEFAULT_MAX_RANK = 16
"""vLLM's `--max-lora-rank` when nobody sets it."""
KNOWN_VERSIONS = {"0.32": "compared with vLLM's own verdicts", "0.33": "read in its source"}
"""Versions of vLLM whose refusals are those told here, and how that is known."""

PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # these change the first LoRA weights only
OUTER_LAYERS = ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out")

Config = Mapping[str, Any]

# Fields that PEFT sets for a way of computing which vLLM does not have. It reads over the
# `..._config` ones and would serve plain LoRA instead.
_OTHER_FORWARDS = {
    "use_dora": "DoRA is not served by vLLM; train with use_dora: false, or serve it merged (merge: in the recipe)",
    "lora_bias": "biases of LoRA layers are not served by vLLM; train with lora_bias: false",
    "alora_invocation_tokens": "aLoRA is not served by vLLM; train without alora_invocation_tokens",
    "use_bdlora": "block-diagonal LoRA is not served by vLLM; train without use_bdlora",
    "use_qalora": "QALoRA is not served by vLLM; train with use_qalora: false",
    "trainable_token_indices": "added tokens are not served by vLLM; train without trainable_token_indices",
    "target_parameters": "LoRA on bare parameters (experts) is not served here; use target_modules",
    "arrow_config": "arrow routing is not served by vLLM; train without arrow_config",
    "monteclora_config": "Monte Carlo LoRA is not served by vLLM; train without monteclora_config",
    "kasa_config": "KaSA is not served by vLLM; train without kasa_config",
    "layer_replication": "replicated layers are not served by vLLM; train without layer_replication",
}


def refusals(adapter_config: Config, max_lora_rank: int = LORA_RANKS[-1], merged: bool = False) -> list[str]:
    """Why an adapter of this configuration could not be served: one sentence a reason, empty when it can.

    Args:
        adapter_config: fields as PEFT writes them; one that is missing has PEFT's default.
        max_lora_rank: the engine's largest rank.
        merged: whether it is to be served as a part of its base, in which DoRA is plain weights.

    >>> refusals({"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"]}, 64)
    []
    >>> refusals({"r": 128, "lora_alpha": 32, "target_modules": ["q_proj"], "use_dora": True}, 64)[1]
    "rank 128 is over the engine's max_lora_rank 64; train with a lower r, or raise it"
    """
    found = [
        text
        for name, text in _OTHER_FORWARDS.items()
        if adapter_config.get(name) and not (merged and name == "use_dora")
    ]
    return found + [text for check in _CHECKS if (text := check(adapter_config, max_lora_rank))]


def require_servable(folder: Path, where: str) -> None:
    """Refuse an adapter that no engine serves as an adapter.

    Args:
        folder: its PEFT folder.
        where: the adapter, for the message.

    Raises:
        BadRequest: every reason why.
    """
    reasons = refusals(json.loads((folder / "adapter_config.json").read_bytes()))
    if reasons:
        raise BadRequest(f"{where}: cannot be served as an adapter: {'; '.join(reasons)}")


def read_from(version: str) -> str | None:
    """What is not known about a version of vLLM, in a sentence; None for one whose refusals are known.

    >>> read_from("0.32.0")
    >>> read_from("0.40.1")
    'what vLLM 0.40.1 refuses is not known here, only what 0.32, 0.33 do'
    """
    if ".".join(version.split(".")[:2]) in KNOWN_VERSIONS:
        return None
    return f"what vLLM {version} refuses is not known here, only what {', '.join(KNOWN_VERSIONS)} do"


def _kind(config: Config, _: int) -> str | None:
    kind = str(config.get("peft_type") or "LORA").rpartition(".")[2]
    return None if kind == "LORA" else f"peft_type {kind} is not served by vLLM; train a LORA adapter"


def _needed(config: Config, _: int) -> str | None:
    missing = [name for name in ("r", "lora_alpha", "target_modules") if config.get(name) is None]
    return f"{', '.join(missing)} must be set; vLLM cannot load an adapter without" if missing else None


def _rank(config: Config, largest: int) -> str | None:
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    for rank in (r for r in ranks if r is not None):
        if not isinstance(rank, int) or isinstance(rank, bool) or rank <= 0:
            return f"rank {rank!r} is not a positive integer; correct r or rank_pattern"
    top = max((r for r in ranks if r is not None), default=0)
    return (
        f"rank {top} is over the engine's max_lora_rank {largest}; train with a lower r, or raise it"
        if top > largest
        else None
    )


def _bias(config: Config, _: int) -> str | None:
    bias = config.get("bias", "none")
    return (
        None
        if bias == "none"
        else f"bias {bias!r} trains the base's biases, which vLLM does not serve; train with bias: none"
    )


def _init(config: Config, _: int) -> str | None:
    init = config.get("init_lora_weights", True)
    if not isinstance(init, str) or init.lower() in PLAIN_INITS:
        return None
    return (
        f"init_lora_weights {init!r} changes the base's own weights, which vLLM does not do; train with "
        "true, or save with PEFT's path_initial_model_for_weight_conversion"
    )


def _saved_modules(config: Config, _: int) -> str | None:
    saved = config.get("modules_to_save")
    return (
        f"modules_to_save {saved} replaces whole layers, which a generating engine does not serve"
        if saved
        else None
    )


def _outer_layers(config: Config, _: int) -> str | None:
    """On the output layer vLLM gets prompt log-probabilities wrong, and the proof stands on these."""
    targets = config.get("target_modules")
    if isinstance(targets, str):
        hit = [
            name
            for name in OUTER_LAYERS
            if re.fullmatch(targets, name) or re.fullmatch(targets, f"model.{name}")
        ]
    else:
        hit = [name for name in OUTER_LAYERS if name in {str(t).rpartition(".")[2] for t in targets or ()}]
    return (
        f"target_modules has {', '.join(hit)}; only layers inside the blocks can be served and proven"
        if hit
        else None
    )


_CHECKS: tuple[Callable[[Config, int], str | None], ...] = (
    _kind,
    _needed,
    _rank,
    _bias,
    _init,
    _saved_modules,
    _outer_layers,
)
