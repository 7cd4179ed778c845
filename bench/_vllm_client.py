"""vLLM's own benchmark client as a peer: `vllm bench serve` of .venv-vllm, with pandas and datasets in it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

VLLM = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "vllm"


@dataclass(frozen=True)
class Load:
    """What every client sends: the prompts' file, how many, tokens of an answer, and how many at once."""

    prompts: Path
    n_prompts: int
    max_tokens: int
    concurrency: int


def vllm_client(url: str, model: str, tokenizer: Path, load: Load) -> dict[str, float]:
    """What vLLM's own client says of its run: `request_throughput` and `output_throughput`, each a second."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(VLLM), "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions",
            "--base-url", url, "--model", model, "--tokenizer", str(tokenizer), "--dataset-name", "custom",
            "--dataset-path", str(load.prompts), "--custom-output-len", str(load.max_tokens), "--disable-shuffle",
            "--skip-chat-template", "--num-prompts", str(load.n_prompts), "--max-concurrency", str(load.concurrency),
            "--temperature", "0", "--disable-tqdm", "--save-result", "--result-dir", folder,
            "--result-filename", "r.json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"vllm bench serve failed: {(done.stderr or done.stdout)[-800:]}")
        found = json.loads((Path(folder) / "r.json").read_text())
    if found["completed"] != load.n_prompts:
        raise SystemExit(f"vllm bench serve: {found['completed']} of {load.n_prompts} answered")
    return {name: float(found[name]) for name in ("request_throughput", "output_throughput")}
