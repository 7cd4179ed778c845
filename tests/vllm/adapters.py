"""LoRA adapters of the real base with visible effect, and the ways in which one can come to do nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

INNER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def build_adapter(
    base: Path, folder: Path, seed: int, targets: Sequence[str] = INNER, scale: float = 0.1
) -> Path:
    """A PEFT adapter, r=8, with random B of standard deviation `scale`; 0 makes one without any effect."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(targets), task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(peft_model.named_parameters()):
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    peft_model.save_pretrained(folder)
    return folder


def renamed(adapter: Path, folder: Path) -> Path:
    """The same adapter under key prefixes of another way of wrapping the model; vLLM loads it and applies nothing."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    moved = {
        key.replace("base_model.model.model.", "base_model.model.language_model.model."): w
        for key, w in weights.items()
    }
    assert not set(moved) & set(weights)
    save_file(moved, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def config_of(adapter: Path) -> dict[str, object]:
    """The adapter's configuration."""
    config: dict[str, object] = json.loads((adapter / "adapter_config.json").read_text())
    return config
