"""vLLM's own benchmark client as a peer: `vllm bench serve` of .venv-vllm, with pandas and datasets in it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import accumulate
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
    """What vLLM's own client says of its run, each a second: `request_throughput`, and `tokens` with all places taken.

    Its own output throughput ends with the last answer; where few answers are asked for, it tells most of how many ran
    alongside the last one. So tokens are counted from the first answer's end to the last one's start.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(VLLM), "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions",
            "--base-url", url, "--model", model, "--tokenizer", str(tokenizer), "--dataset-name", "custom",
            "--dataset-path", str(load.prompts), "--custom-output-len", str(load.max_tokens), "--disable-shuffle",
            "--skip-chat-template", "--num-prompts", str(load.n_prompts), "--max-concurrency", str(load.concurrency),
            "--temperature", "0", "--disable-tqdm", "--save-result", "--save-detailed", "--result-dir", folder,
            "--result-filename", "r.json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"vllm bench serve failed: {(done.stderr or done.stdout)[-800:]}")
        found = json.loads((Path(folder) / "r.json").read_text())
    if found["completed"] != load.n_prompts:
        raise SystemExit(f"vllm bench serve: {found['completed']} of {load.n_prompts} answered")
    return {"request_throughput": float(found["request_throughput"]), "tokens": _steady(found)}


def _steady(found: dict[str, list[float]]) -> float:
    """Chunks a second between the first answer's end and the last one's start; a chunk is a token here."""
    came = [
        list(accumulate([start + first, *gaps]))
        for start, first, gaps in zip(found["start_times"], found["ttfts"], found["itls"], strict=True)
    ]
    begin, end = min(times[-1] for times in came), max(found["start_times"])
    return sum(begin < at <= end for times in came for at in times) / (end - begin) if end > begin else 0.0
