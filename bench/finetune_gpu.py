"""Fine-tuning an 8B-shaped Llama on one GPU beside TRL's own trainer: tokens a second, MFU, peak memory, parity.

    python bench/finetune_gpu.py     # one GPU of 80 GB, 64 GB of disk, about 20 minutes; without one: unmeasured

Random weights in Llama-3.1-8B's shape, LoRA r=16 on all linear layers, bfloat16 or NF4, rows of 4,096 random tokens,
all with labels. Each system trains in a process of its own, in turn; the first two steps are not timed. TRL has its
defaults, but reads the rows in order, so that losses can be compared step by step.

MFU is FLOPs a token * tokens a second / the card's dense bfloat16 peak. FLOPs a token: 2 N forward and 2 N backward
through the frozen weights (N: weights of matrix products, the output layer among them, the embedding not), 6 for each
of the adapter's, and 6 * layers * heads * head size * tokens of a row for causal attention. What a system
computes twice (checkpointing) is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench._figure import say, signature, unmeasured  # noqa: E402 - the repository is not installed with its benches

SYSTEMS = ("llmops", "llmops packed", "trl")
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
UNITS = {
    "tokens_per_s": "tokens/s",
    "mfu": "fraction of the dense bf16 peak",
    "peak_gib": "GiB allocated, at most",
}
N_WARM = 2


def main() -> None:
    args = _arguments()
    if args.child:
        system, quantization = args.child.split("/")
        print(json.dumps(_run(system, quantization, args)))
        return
    import torch

    if not torch.cuda.is_available():
        for quantization in ("none", "nf4"):
            for figure, unit in {**UNITS, "parity": "largest relative difference of a step's loss"}.items():
                unmeasured(f"finetune_gpu_{quantization}_{figure}", unit, "no CUDA device here")
        return
    with tempfile.TemporaryDirectory() as folder:
        _build(Path(folder), args.layers)
        for quantization in ("none", "nf4"):
            _compare(quantization, folder, args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=1, help="rows a pass")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--checkpointing", action="store_true", help="ours too computes activations twice")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _build(folder: Path, layers: int) -> None:
    """Write the model and a byte tokenizer to `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny import build_tokenizer

    shape = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    config = LlamaConfig(
        vocab_size=128256, num_hidden_layers=layers, max_position_embeddings=131072, rope_theta=500000.0,
        bos_token_id=256, eos_token_id=257, pad_token_id=257, tie_word_embeddings=False, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        LlamaForCausalLM(config).save_pretrained(folder)
    build_tokenizer(131072).save_pretrained(folder)


def _compare(quantization: str, folder: str, args: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    for _ in range(args.repeat):
        for system in SYSTEMS:
            found[system].append(_child(f"{system}/{quantization}", folder, args))
    import torch

    sign = signature(
        "torch", "transformers", "trl", "peft", card=torch.cuda.get_device_name(), quantization=quantization,
        **{name: getattr(args, name) for name in ("tokens", "rows", "steps", "layers", "checkpointing")},
        goal="mfu >= 0.45 (NeMo AutoModel publishes 0.406 on an H100)",
    )  # fmt: skip
    for ours in SYSTEMS[:2]:
        name = f"finetune_gpu_{quantization}_{ours.replace(' ', '_')}"
        for figure, unit in UNITS.items():
            values, theirs = ([run.get(figure) for run in found[system]] for system in (ours, "trl"))
            if None in values:
                unmeasured(
                    f"{name}_{figure}", unit, str(found[ours][0].get("failed", "peak of this card not known"))
                )
            else:
                say(f"{name}_{figure}", values, unit, sign, {} if None in theirs else {"trl": theirs})
    pairs = zip(found["llmops"][0].get("losses", ()), found["trl"][0].get("losses", ()), strict=False)
    apart = [abs(a - b) / abs(b) for a, b in pairs]
    unit = "largest relative difference of a step's loss"
    if apart:
        say(f"finetune_gpu_{quantization}_parity", [max(apart)], unit, sign, {})
    else:
        unmeasured(f"finetune_gpu_{quantization}_parity", unit, "a system did not run")


def _child(child: str, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__)), "--child", child, "--model", folder]
    for name in ("tokens", "rows", "steps", "layers"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--checkpointing"] if args.checkpointing else []
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    env |= {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        failed = (done.stderr.strip().splitlines() or ["no word"])[-1]
        found: dict[str, Any] = {"failed": failed}
    else:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps({"run": child, **found}), file=sys.stderr, flush=True)
    return found


def _run(system: str, quantization: str, args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from peft.helpers import disable_input_dtype_casting
    from transformers import TrainerCallback

    ends: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            ends.append(time.monotonic())

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    with tempfile.TemporaryDirectory() as scratch:
        trainer, mean_tokens = (_trl if system == "trl" else _ours)(system, quantization, args, Path(scratch))
        trainer.add_callback(Clock())
        with disable_input_dtype_casting(trainer.model, active=system != "trl"):
            trainer.train()
    per_step = args.rows * args.tokens
    speed = per_step * (len(ends) - N_WARM) / (ends[-1] - ends[N_WARM - 1])
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()), None)
    return {
        "tokens_per_s": speed,
        "mfu": flops_a_token(trainer.model, mean_tokens) * speed / peak if peak else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "losses": losses,
    }


def flops_a_token(model: Any, n_tokens: int) -> float:
    """FLOPs that training takes a token, for rows of `n_tokens`; see the head of this file."""
    config = model.config
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * q + 2 * kv) + 3 * config.hidden_size * config.intermediate_size
    frozen = config.num_hidden_layers * layer + config.vocab_size * config.hidden_size
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return float(4 * frozen + 6 * adapter + 6 * config.num_hidden_layers * q * n_tokens)


def _rows(args: argparse.Namespace, n_documents: int) -> list[list[int]]:
    """Rows, or for packing `n_documents` times as many, each so much shorter."""
    import torch

    draw = torch.Generator().manual_seed(0)
    shape = (args.steps * args.rows * n_documents, args.tokens // n_documents)
    found: list[list[int]] = torch.randint(128000, shape, generator=draw).tolist()
    return found


def _recipe(quantization: str, args: argparse.Namespace) -> Any:
    from llmops.train.recipe import Recipe

    return Recipe.model_validate(
        {
            "name": "bench-gpu", "base_model": args.model, "method": {"kind": "sft"},
            "data": {"kind": "files", "paths": ["x"]}, "max_tokens": args.tokens, "n_steps": args.steps,
            "batch": {"per_device": args.rows}, "precision": "bf16", "quantization": quantization, "device": "cuda",
            "gradient_checkpointing": args.checkpointing, "learning_rate": 2e-4, "schedule": "linear",
        }
    )  # fmt: skip


def _ours(system: str, quantization: str, args: argparse.Namespace, scratch: Path) -> tuple[Any, int]:
    from llmops.chat import Encoded
    from llmops.registry.bases import resolve_base
    from llmops.train.methods import sft
    from llmops.train.rows import Example, Examples
    from llmops.train.session import Session

    n_documents = 8 if system == "llmops packed" else 1
    recipe = _recipe(quantization, args)
    recipe = recipe.model_copy(
        update={
            "batch": recipe.batch.model_copy(update={"packing": n_documents > 1, "group_by_length": False})
        }
    )
    rows = _rows(args, n_documents)
    examples = tuple(
        Example(Encoded(tuple(ids), (0, *(1 for _ in ids[1:]))), "g", str(i)) for i, ids in enumerate(rows)
    )
    session = Session(
        resolve_base(args.model), Examples(None, examples, (), ()), "cuda", scratch, scratch / "adapter"
    )
    in_order = (
        sft.rows_in_order(recipe, [len(ids) for ids in rows])
        if n_documents > 1
        else [[i] for i in range(len(rows))]
    )
    return sft.build_trainer(recipe, session, in_order, lambda *_: None), args.tokens // n_documents


def _trl(_system: str, quantization: str, args: argparse.Namespace, scratch: Path) -> tuple[Any, int]:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from llmops.train.model import lora_config

    start: dict[str, Any] = {"dtype": torch.bfloat16}
    if quantization == "nf4":
        start["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    config = SFTConfig(
        output_dir=str(scratch), max_steps=args.steps, per_device_train_batch_size=args.rows, max_length=args.tokens,
        learning_rate=2e-4, seed=0, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
        train_sampling_strategy="sequential", model_init_kwargs=start,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=args.model,
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": _rows(args, 1)}),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=lora_config(_recipe(quantization, args).lora),
    )
    return trainer, args.tokens


if __name__ == "__main__":
    main()
