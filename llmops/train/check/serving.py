"""Whether the adapter that a recipe would give can be served by the engine it is meant for."""

from __future__ import annotations

from typing import Any

from llmops.engines.servability import DEFAULT_MAX_RANK, read_from, refusals
from llmops.engines.vllm import LORA_RANKS
from llmops.train.recipe import Recipe, Reward
from llmops.train.sanity import Finding


def serving_findings(recipe: Recipe, adapter_config: dict[str, Any]) -> list[Finding]:
    """What the engine that `serve` names, or vLLM in general, makes of an adapter of this configuration.

    Args:
        recipe: may name the engine and its version.
        adapter_config: fields as PEFT writes them.
    """
    if isinstance(recipe.method, Reward):
        return [Finding("serving", "ok", "a reward model is never served")]
    serve = recipe.serve
    if serve is None:
        largest, engine = LORA_RANKS[-1], "vllm"
    else:
        largest, engine = serve.max_lora_rank or DEFAULT_MAX_RANK, serve.engine
    if engine == "transformers":
        largest = LORA_RANKS[-1]
    elif largest not in LORA_RANKS:
        allowed = ", ".join(map(str, LORA_RANKS))
        what = f"serve.max_lora_rank: vLLM does not start with {largest}"
        return [Finding("serving", "refuse", what, f"give one of {allowed}")]
    reasons = refusals(adapter_config, largest, merged=recipe.merge is not None)
    if reasons:
        what = f"the adapter could not be served: {'; '.join(reasons)}"
        return [Finding("serving", "refuse", what)]
    name = engine if serve is None or engine == "transformers" else f"{engine} {serve.version}"
    rank = adapter_config.get("r")
    room = f", max_lora_rank {largest}" if engine == "vllm" and serve is not None else ""
    found = [Finding("serving", "ok", f"{name} serves a LoRA adapter of rank {rank}{room}")]
    if engine == "vllm" and serve is not None and (unknown := read_from(serve.version)):
        found.append(
            Finding("serving", "warn", unknown, "evaluate the adapter on that engine before it is released")
        )
    if recipe.quantization != "none":
        found.append(
            Finding(
                "serving",
                "warn",
                f"is trained on a {recipe.quantization} base and served on the unquantised one: vLLM reads no other",
                "the evaluation measures what is served",
            )
        )
    return found
