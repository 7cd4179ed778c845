"""Quantises a merged model with llmcompressor, reads it back and says what it answers: a program of its own.

Runs in the environment that `serving/install-quantize.sh` builds, whose transformers is older than ours, so it imports
nothing of llmops. Usage: `python quantize_child.py JOB`, a JSON file with

    model, out         folders: the merged model, and where the quantised one goes
    scheme             a preset of compressed-tensors: W8A8, W4A16, FP8_DYNAMIC
    token_ids          the probes
    answers            [{prompt, tokens}], the adapter's own
    result             the file that gets {logprobs, shortfalls, versions}
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def main(job_file: Path) -> None:
    """Do one job; whatever goes wrong is an exception, which the caller reads from stderr."""
    job: dict[str, Any] = json.loads(job_file.read_text())
    quantize(Path(job["model"]), Path(job["out"]), job["scheme"])
    # Weights are unpacked and activations rounded as an engine rounds them, in fp32 otherwise.
    model = AutoModelForCausalLM.from_pretrained(
        job["out"], dtype=torch.float32, quantization_config=CompressedTensorsConfig(run_compressed=False)
    ).eval()
    result = {
        "logprobs": [logprobs(model, row) for row in job["token_ids"]],
        "shortfalls": [shortfalls(model, answer["prompt"], answer["tokens"]) for answer in job["answers"]],
        "versions": {name: version(name) for name in PACKAGES},
    }
    Path(job["result"]).write_text(json.dumps(result))


def quantize(folder: Path, out: Path, scheme: str) -> None:
    """Round every linear layer but the output layer to the nearest number the scheme has; no data is needed."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
    model.save_pretrained(out, save_compressed=True)


def logprobs(model: Any, row: list[int]) -> list[float]:
    """Log-probability of each token of `row` after its first, in nats."""
    ids = torch.tensor([row])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    found: list[float] = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
    return found


def shortfalls(model: Any, prompt: list[int], tokens: list[int]) -> list[float]:
    """How far each token of an answer stands below the model's own choice, in nats; 0 where it is that choice."""
    ids = torch.tensor([prompt + tokens])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    found: list[float] = (logits.max(-1).values - chosen).tolist()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
