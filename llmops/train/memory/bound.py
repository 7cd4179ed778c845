"""An upper bound of a run's memory from its model's configuration alone, in milliseconds."""

from __future__ import annotations

import json
from typing import Any

from llmops.train.memory import constants
from llmops.train.memory.estimate import Scene
from llmops.train.memory.passes import largest, passes_of

KEPT = 24
"""Hidden-size values a token that a layer keeps for the backward pass at most, beside those of its inner width."""
KEPT_WIDE = 8
HOLES = 2  # of the heap: half of it free is more than was ever seen


def upper_bound(scene: Scene) -> int:
    """Bytes that a run surely does not exceed: everything in fp32, eager attention, nothing computed twice.

    Args:
        scene: the run; its base's config.json is read.
    """
    config = json.loads((scene.base.path / "config.json").read_text())
    config = config.get("text_config") or config
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    inner, vocabulary = int(config.get("intermediate_size") or 4 * hidden), int(config["vocab_size"])
    top = largest(passes_of(scene.recipe, scene.rows, shared=False))
    longest = 2 * top.n_tokens  # both answers of a pair may be in one row
    a_token = KEPT * hidden + KEPT_WIDE * inner + 3 * _heads(config) * longest
    activations = 4 * top.n_positions * layers * a_token + 16 * top.n_labels * vocabulary
    a_layer = 4 * hidden * hidden + 3 * hidden * inner
    weights = layers * a_layer + 2 * vocabulary * hidden
    adapters = 16 * layers * 7 * scene.recipe.lora.r * (hidden + inner)
    files = sum(file.stat().st_size for file in scene.base.path.glob("*.safetensors"))
    return constants.LIBRARIES_BYTES + 8 * weights + files + 2 * adapters + HOLES * activations


def _heads(config: dict[str, Any]) -> int:
    return int(config.get("num_attention_heads") or 1)
