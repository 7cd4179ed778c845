"""Whether this machine's processor suits the arithmetic that a recipe asks for."""

from __future__ import annotations

from llmops.train.recipe import Recipe
from llmops.train.sanity import Finding


def device_findings(recipe: Recipe, device: str) -> list[Finding]:
    """The device a run is on, and whether it is slow at the recipe's precision there."""
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name()
        slow = recipe.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        name = f"cpu, {torch.get_num_threads()} threads"
        slow = recipe.precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    found = [Finding("device", "ok", f"{name}; {recipe.precision}")]
    if slow:
        advice = "set precision: fp32" if recipe.quantization == "none" else "train on another machine"
        what = f"{device} has no bfloat16 arithmetic of its own: steps take many times longer than in fp32"
        found.append(Finding("device", "warn", what, advice))
    return found
