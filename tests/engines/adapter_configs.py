"""Adapter configurations and who refuses them; the vllm tier holds the verdicts against vLLM's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_RANK = 64
PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "bias": "none",
    "init_lora_weights": True,
    "use_dora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "layer_replication": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


@dataclass(frozen=True)
class Case:
    """`PLAIN` with `change`, less `without`; whether it is refused by us (`ours`) and by vLLM."""

    change: dict[str, Any]
    ours: bool
    vllm: bool
    without: tuple[str, ...] = field(default=())

    @property
    def config(self) -> dict[str, Any]:
        """The adapter's configuration."""
        return {name: value for name, value in (PLAIN | self.change).items() if name not in self.without}


SAME = [
    Case({}, False, False),
    Case({"r": 64}, False, False),
    Case({"use_rslora": True}, False, False),
    Case({"rank_pattern": {"q_proj": 32}, "alpha_pattern": {"q_proj": 8}}, False, False),
    Case({"rank_pattern": None, "alpha_pattern": None}, False, False),
    Case({"target_modules": ".*_proj"}, False, False),
    Case({"lora_dropout": 0.1, "layers_to_transform": [0, 1], "exclude_modules": ["k_proj"]}, False, False),
    *(
        Case({"init_lora_weights": init}, False, False)
        for init in (False, "gaussian", "eva", "EVA", "orthogonal", "lora_ga", "mica")
    ),
    *(
        Case({"init_lora_weights": init}, True, True)
        for init in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "new")
    ),
    Case({"use_dora": True}, True, True),
    Case({"lora_bias": True}, True, True),
    Case({"bias": "all"}, True, True),
    Case({"bias": "lora_only"}, True, True),
    Case({"alora_invocation_tokens": [1, 2]}, True, True),
    Case({"use_qalora": True}, True, True),
    Case({"use_bdlora": {"nblocks": 2}}, True, True),
    Case({"layer_replication": [[0, 4], [2, 5]]}, True, True),
    Case({"modules_to_save": ["lm_head"]}, True, True),
    Case({"modules_to_save": ["embed_tokens", "score"]}, True, True),
    Case({"r": 65}, True, True),
    Case({"r": 0}, True, True),
    Case({"rank_pattern": {"q_proj": 128}}, True, True),
    Case({"rank_pattern": {"q_proj": 0}}, True, True),
    Case({"rank_pattern": {"q_proj": "8"}}, True, True),
    *(Case({}, True, True, without=(name,)) for name in ("r", "lora_alpha", "target_modules")),
    Case({"use_dora": True, "lora_bias": True, "r": 128}, True, True),
]

# Configurations that vLLM's check lets through, and that then fail to load, or are served as plain LoRA.
OURS_ALONE = [
    Case({"modules_to_save": ["score"]}, True, False),
    Case({"trainable_token_indices": [5]}, True, False),
    Case({"trainable_token_indices": {"embed_tokens": [5]}}, True, False),
    Case({"target_modules": ["q_proj", "lm_head"]}, True, False),
    Case({"target_modules": ["model.embed_tokens"]}, True, False),
    Case({"target_modules": ".*(q_proj|lm_head)"}, True, False),
    Case({"target_parameters": ["experts.gate_up_proj"]}, True, False),
    Case({"arrow_config": {"arrow_top_k": 2}}, True, False),
    Case({"monteclora_config": {"n": 1}}, True, False),
    Case({"kasa_config": {"beta": 1}}, True, False),
    Case({"peft_type": "ADALORA"}, True, False),
]
