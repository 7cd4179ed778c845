"""The embedded engine, whole and over HTTP: a child where processes are the claim, else a thread of this process,
which has torch already. Its oracle is the `generate` of transformers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx

BASE_NAME = "base@0123456789ab"


@dataclass(frozen=True)
class Running:
    """A running engine."""

    url: str

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120)

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, timeout=30).json()

    def chat(self, prompt: str, **fields: Any) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0} | fields
        answer = self.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        parsed: dict[str, Any] = answer.json()
        return parsed

    def load(self, name: str, path: Path) -> httpx.Response:
        return self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})

    def wait_for_load(self, n_running: int, n_waiting: int = 0, within_s: float = 60) -> None:
        deadline = time.monotonic() + within_s
        while True:
            seen = self.get("/load")
            if (seen["n_running"], seen["n_waiting"]) == (n_running, n_waiting):
                return
            assert time.monotonic() < deadline, f"wanted {n_running}+{n_waiting}, still {seen}"
            time.sleep(0.01)


@dataclass(frozen=True)
class Child(Running):
    """A running engine that is a process of its own."""

    process: subprocess.Popen[str]


def command(model: Path, options: Sequence[str] = ()) -> list[str]:
    line = [sys.executable, "-m", "llmops.engines.embedded", "--model", str(model)]
    return [*line, "--served-model-name", BASE_NAME, "--dtype", "float32", "--threads", "1", *options]


@contextmanager
def running(model: Path, options: Sequence[str] = ()) -> Iterator[Child]:
    process = subprocess.Popen(
        command(model, options), stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "http://" in line, f"the engine said {line!r} and exited with {process.wait()}"
        yield Child(line.split()[-1], process)
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_here(model: Path, options: Sequence[str] = ()) -> Iterator[Running]:
    """The same engine in a thread of this process: all but the signals that end it."""
    from llmops.engines.embedded.__main__ import load_model, make_parser, reserve, serve

    args = make_parser().parse_args(command(model, options)[3:])
    listener = reserve(args.host, args.port)
    loaded = load_model(args)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def work() -> None:
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        await serve(loaded, listener, args, stop)

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    loop, stop = started.result(30)
    try:
        host, port = listener.getsockname()[:2]
        wait_until_it_listens(host, port)
        yield Running(f"http://{host}:{port}")
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)


def wait_until_it_listens(host: str, port: int, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            httpx.get(f"http://{host}:{port}/health", timeout=30).raise_for_status()
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return


@lru_cache(maxsize=8)
def oracle(model: Path, adapter: Path | None) -> tuple[Any, Any]:
    """Return (tokenizer, model) loaded the plain way, with PEFT's own loader for an adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        net = PeftModel.from_pretrained(net, adapter)
    return AutoTokenizer.from_pretrained(model), net.eval()


def generated(model: Path, adapter: Path | None, ids: Sequence[int], n_tokens: int) -> list[int]:
    """Greedy token ids of `generate`, the end of sequence included."""
    import torch

    _, net = oracle(model, adapter)
    out = net.generate(input_ids=torch.tensor([ids]), max_new_tokens=n_tokens, do_sample=False)
    tokens: list[int] = out[0, len(ids) :].tolist()
    return tokens


def chat_ids(model: Path, prompt: str) -> list[int]:
    tokenizer, _ = oracle(model, None)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def prompt_logprobs(model: Path, adapter: Path | None, ids: Sequence[int]) -> list[float]:
    """Log-probability of every token but the first, from one plain forward in fp32."""
    import torch

    _, net = oracle(model, adapter)
    with torch.inference_mode():
        logits = net(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    values: list[float] = logits[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1).tolist()
    return values
