"""What vLLM refuses is refused before training; the vllm tier proves the verdicts to be vLLM's own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from llmops.engines.servability import refusals
from tests.engines.adapter_configs import MAX_RANK, OURS_ALONE, PLAIN, SAME, Case


@pytest.mark.parametrize("case", SAME + OURS_ALONE, ids=lambda case: json.dumps(case.change))
def test_each_configuration_is_refused_or_let_through(case: Case) -> None:
    assert bool(refusals(case.config, MAX_RANK)) is case.ours


def test_every_reason_is_told_at_once_each_in_one_sentence() -> None:
    config = PLAIN | {
        "use_dora": True,
        "r": 128,
        "bias": "all",
        "init_lora_weights": "pissa",
        "modules_to_save": ["lm_head"],
    }
    found = refusals(config, MAX_RANK)
    for word in (
        "DoRA",
        "rank 128 is over the engine's max_lora_rank 64",
        "bias 'all'",
        "'pissa'",
        "modules_to_save ['lm_head']",
    ):
        assert sum(word in reason for reason in found) == 1, (word, found)
    assert len(found) == 5
    assert not any(reason.endswith(".") or "\n" in reason for reason in found)


def test_an_adapter_as_peft_saves_it_can_be_served(tiny_adapter: Path) -> None:
    assert refusals(json.loads((tiny_adapter / "adapter_config.json").read_text()), MAX_RANK) == []


def test_a_planned_lora_config_reads_like_a_saved_one() -> None:
    from peft import LoraConfig

    planned = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert refusals(asdict(planned), MAX_RANK) == []
    assert "DoRA" in refusals(asdict(LoraConfig(r=8, target_modules=["q_proj"], use_dora=True)), MAX_RANK)[0]
