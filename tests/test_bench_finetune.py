"""What the benchmarks of fine-tuning count: FLOPs against torch's own counter, the same rows for every system."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import finetune, finetune_gpu
from llmops.train.model import lora_config
from llmops.train.recipe import Lora
from tests.tiny import build_tiny_model


def test_flops_a_token_are_those_torch_counts(tiny_model: Path) -> None:
    """torch counts whole squares of attention; causal attention needs half of them, and the formula says so."""
    n = 48
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager"), lora_config(Lora(r=4))
    )
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.randint(258, (1, n))).logits.logsumexp(-1).sum().backward()
    square = 6 * 2 * 64 * n  # 6 * layers * heads * head size * tokens
    expected = finetune_gpu.flops_a_token(model, n) + square
    # The tolerance: no gradient is made of the first layer's input, a fourteenth of this small model's work.
    assert counter.get_total_flops() / n == pytest.approx(expected, rel=0.08)


def test_without_a_gpu_every_figure_is_unmeasured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["finetune_gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finetune_gpu.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 8
    assert all(line["value"] is None and line["unmeasured"] == "no CUDA device here" for line in lines)


@pytest.mark.walk
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_every_system_of_the_cpu_benchmark_reads_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    base = build_tiny_model(tmp_path / "model", max_len=2048)
    monkeypatch.setattr(finetune, "MAX_TOKENS", 700)
    job = finetune.Job(method, argparse.Namespace(model=str(base), steps=2, threads=1), tmp_path / "scratch")
    ours, _ = job.ours()
    theirs, _ = job.trl("trl")
    tokenizer = AutoTokenizer.from_pretrained(base)
    sides = ("input_ids",) if method == "sft" else ("prompt_ids", "chosen_ids", "rejected_ids")
    for side in sides:
        mine, other = (
            sorted(tokenizer.decode(ids).rstrip("\n") for ids in trainer.train_dataset[side])
            for trainer in (ours, theirs)
        )
        assert mine == other
    assert job.n_supervised > 0
