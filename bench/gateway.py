"""What the gateway costs beside a bare relay: CPU a request and a streamed chunk, added time to first token, streams.

    python bench/gateway.py

The engine is a fake one in a process of its own, which answers at once, or a chunk every `--chunk-ms`. Peers in the
same run, each in a process of its own and under the same HTTP server and event loop: a bare relay (pure ASGI and an
aiohttp client, nothing else), vllm-router where it is installed, and the engine asked directly. CPU is the process's
own, from the operating system, so neither the load generator's nor the engine's counts. Repetitions take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import psutil
from _figure import say, signature, unmeasured

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
MODEL = "docs"
PROMPT = "def add(a, b): return a + b " * 12
CAPTURED = '{"capture": {"sample_frac": 1.0, "personal_data": "off"}}'
"""Every prompt and answer is kept, encrypted; presidio's recognisers, if they are installed, are not asked."""
FORK = multiprocessing.get_context("fork")


class _Engine(asyncio.Protocol):
    """HTTP/1.1 of the least kind: `max_tokens` chunks of a stream, one every `chunk_s`, or one whole answer at once."""

    chunk_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._loop = asyncio.get_running_loop()
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            at = head.find(b"content-length:")
            n_body = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._data) < end + 4 + n_body:
                return
            body, self._data = self._data[end + 4 : end + 4 + n_body], self._data[end + 4 + n_body :]
            self._answer(orjson.loads(body) if body else {"model": MODEL})

    def _answer(self, body: dict[str, Any]) -> None:
        if body.get("stream"):
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self._next(body, body.get("max_tokens", 16))
            return
        message = {"role": "assistant", "content": "word " * 24}
        answer = {
            **_head(body, "chat.completion"), **_USAGE,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "data": [{"id": MODEL}],  # of /v1/models, for the router
        }  # fmt: skip
        data = orjson.dumps(answer)
        length = str(len(data)).encode()
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
            + length
            + b"\r\n\r\n"
            + data
        )

    def _next(self, body: dict[str, Any], n_left: int) -> None:
        if self._transport.is_closing():
            return
        head = _head(body, "chat.completion.chunk")
        if n_left == 0:
            if (body.get("stream_options") or {}).get("include_usage"):
                self._event(orjson.dumps({**head, "choices": [], **_USAGE}))
            self._event(b"[DONE]")
            self._transport.write(b"0\r\n\r\n")
            return
        choice = {"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}
        self._event(orjson.dumps({**head, "choices": [choice]}))
        self._loop.call_later(self.chunk_s, self._next, body, n_left - 1)

    def _event(self, data: bytes) -> None:
        event = b"data: " + data + b"\n\n"
        self._transport.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")


_USAGE = {"usage": {"prompt_tokens": 90, "completion_tokens": 24, "total_tokens": 114}}


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-0123456789abcdef", "object": kind, "created": 1, "model": body["model"]}


def _engine(port: int, chunk_s: float) -> None:
    async def main() -> None:
        _Engine.chunk_s = chunk_s
        server = await asyncio.get_running_loop().create_server(_Engine, "127.0.0.1", port, backlog=4096)
        await server.serve_forever()

    _run(main())


def _run(work: Any) -> None:
    """In the loop that `llmops serve` runs in."""
    from llmops.serving.server import new_event_loop

    with asyncio.Runner(loop_factory=new_event_loop) as runner, suppress(KeyboardInterrupt):
        runner.run(work)


def _bare(listener: socket.socket, engine: str) -> None:
    """The peer: reads the body, posts it, passes on what comes. Nobody is watched, counted or logged."""
    import aiohttp

    from llmops.serving.server import uvicorn_server
    from tests.serving.bare import profile_of

    async def main() -> None:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        headers = {"content-type": "application/json"}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            body, more = b"", True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            async with session.post(engine + scope["path"], data=body, headers=headers) as answer:
                kind = answer.headers["content-type"].encode()
                start = {"type": "http.response.start", "status": answer.status}
                await send({**start, "headers": [(b"content-type", kind)]})
                async for data in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        await uvicorn_server(app, profile_of()).serve(sockets=[listener])

    _run(main())


def _gateway(listener: socket.socket, engine: str, folder: Path, changes: dict[str, Any]) -> None:
    """The gateway with everything on that it has by default, and what the profile settings add."""
    from llmops.serving.app import Gateway
    from llmops.serving.server import uvicorn_server
    from llmops.settings import find_workspace
    from tests.serving.bare import profile_of, table_of

    folder.mkdir(exist_ok=True)
    (folder / "llmops.yaml").write_text("{}\n")

    async def main() -> None:
        profile = profile_of(limits={"max_requests": 4096}, **changes)
        gateway = Gateway(profile, find_workspace(folder))
        gateway.live.table = table_of(docs="docs")
        gateway.live.side.url = engine
        await gateway.open()
        await uvicorn_server(gateway, profile).serve(sockets=[listener])

    _run(main())


@dataclass(frozen=True)
class Server:
    """Something that answers: its address, and the process whose CPU is counted."""

    name: str
    port: int
    process: psutil.Process | None

    def cpu_s(self) -> float:
        """Seconds that all its threads have run: the scheduler counts nanoseconds, where it is asked (Linux)."""
        if self.process is None:
            return 0.0
        try:
            told = [path.read_text() for path in Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")]
            return sum(int(line.split()[0]) for line in told) / 1e9
        except OSError:
            times = self.process.cpu_times()
            return times.user + times.system


class _Client(asyncio.Protocol):
    """One connection that asks the same again and again; notes when the first event came and counts them."""

    def __init__(self, request: bytes, done: Callable[[_Client], None]) -> None:
        self._request, self._done = request, done
        self.n_events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.ask()

    def ask(self) -> None:
        self.started, self.first, self._tail, self._n_body = time.perf_counter(), 0.0, b"", -1
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.first and b"data: " in data:
            self.first = time.perf_counter()
        data = self._tail + data
        self.n_events += data.count(b"data: {")
        self._tail = data[-6:] if not data.endswith(b"data: {") else b""
        if self._n_body < 0 and (at := data.lower().find(b"content-length:")) >= 0:
            head, _, body = data.partition(b"\r\n\r\n")
            self._n_body = int(head[at + 15 :].split(b"\r\n", 1)[0]) - len(body)
        elif self._n_body > 0:
            self._n_body -= len(data) - len(self._tail)
        if self._n_body == 0 or data.endswith(b"\r\n0\r\n\r\n"):
            self._done(self)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._done(self)


@dataclass(frozen=True)
class Load:
    """So many requests over so many connections; chunks of each stream, 0 for whole answers."""

    n_requests: int
    n_connections: int
    n_chunks: int


def _request(load: Load) -> bytes:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": load.n_chunks or 24,
    }
    data = orjson.dumps({**body, "temperature": 0, "stream": load.n_chunks > 0})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def _drive(port: int, load: Load) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    ttft: list[float] = []
    n_left, n_open, n_events = load.n_requests - load.n_connections, load.n_connections, 0

    def done(client: _Client) -> None:
        nonlocal n_left, n_open, n_events
        if client.first:
            ttft.append(1000 * (client.first - client.started))
        n_events, client.n_events = n_events + client.n_events, 0
        if n_left > 0:
            n_left -= 1
            client.ask()
            return
        n_open -= 1
        if not n_open and not over.done():
            over.set_result(None)

    request = _request(load)
    started = time.perf_counter()
    clients = [
        (await loop.create_connection(lambda: _Client(request, done), "127.0.0.1", port))[0]
        for _ in range(load.n_connections)
    ]
    await over
    for transport in clients:
        transport.close()
    return {"s": time.perf_counter() - started, "ttft_ms": ttft, "n_events": n_events}


def drive(server: Server, load: Load) -> dict[str, Any]:
    """Ask a server; what was seen, and the CPU it took."""
    before = server.cpu_s()
    found = asyncio.run(_drive(server.port, load))
    return {**found, "cpu_s": server.cpu_s() - before}


def _drive_into(port: int, load: Load, results: Any) -> None:
    results.put(asyncio.run(_drive(port, load)))


class Stage:
    """All processes of one run."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self._folder, self._given = folder, given
        self._children: list[Any] = []
        self.engines = [self._engine() for _ in range(1)]

    def _engine(self) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        self._start(_engine, port, self._given.chunk_ms / 1000)
        return _until_up(port)

    def _start(self, target: Callable[..., None], *arguments: Any) -> int:
        child = FORK.Process(target=target, args=arguments, daemon=True)
        child.start()
        self._children.append(child)
        assert child.pid is not None
        return child.pid

    @property
    def _engine_url(self) -> str:
        return f"http://127.0.0.1:{self.engines[0]}"

    def direct(self) -> Server:
        return Server("direct", self.engines[0], None)

    def bare(self) -> Server:
        return self._asgi("bare relay", _bare, self._engine_url)

    def gateway(self, number: int = 0) -> Server:
        folder = self._folder / f"gateway{number}"
        return self._asgi("gateway", _gateway, self._engine_url, folder, json.loads(self._given.profile))

    def _asgi(self, name: str, target: Callable[..., None], *arguments: Any) -> Server:
        from llmops.listening import bind

        with bind("127.0.0.1", 0) as listener:
            port = int(listener.getsockname()[1])
            pid = self._start(target, listener, *arguments)
        return Server(name, _until_up(port), psutil.Process(pid))

    def router(self) -> Server | None:
        command = shutil.which("vllm-router", path=str(Path(sys.executable).parent))
        if command is None or self._given.no_router:
            return None
        with socket.socket() as free, socket.socket() as metrics:
            free.bind(("127.0.0.1", 0))
            metrics.bind(("127.0.0.1", 0))
            port, other = int(free.getsockname()[1]), int(metrics.getsockname()[1])
        line = [command, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", self._engine_url]
        line += ["--policy", "round_robin", "--prometheus-port", str(other)]
        with (self._folder / "router.log").open("wb") as log:
            child = subprocess.Popen(line, stdout=log, stderr=log)
        self._children.append(child)
        return Server("vllm-router", _until_up(port), psutil.Process(child.pid))

    def close(self) -> None:
        for child in self._children:
            child.kill()


def _until_up(port: int) -> int:
    deadline = time.monotonic() + 30
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return port
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing answers on port {port}")
        time.sleep(0.05)


@contextmanager
def stage(given: argparse.Namespace) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory() as folder:
        made = Stage(Path(folder), given)
        try:
            yield made
        finally:
            made.close()


Values = dict[str, list[float]]


def in_turn(servers: list[Server], n: int, measure: Callable[[Server], float]) -> Values:
    """One value a repetition of each server, which take turns; the first round warms up."""
    found: Values = {server.name: [] for server in servers}
    for i in range(n + 1):
        for server in servers:
            value = measure(server)
            if i:
                found[server.name].append(value)
    return found


def beside(figure: str, unit: str, sign: dict[str, Any], found: Values) -> None:
    say(figure, found.pop("gateway"), unit, sign, found)


def request_us(server: Server, n: int) -> float:
    """CPU microseconds a whole answer, 16 connections."""
    return 1e6 * drive(server, Load(n, 16, 0))["cpu_s"] / n


def chunk_us(server: Server, n: int) -> float:
    """CPU microseconds a streamed chunk: what streams of 220 chunks cost more than those of 20, 32 connections."""
    short, long = (drive(server, Load(n, 32, n_chunks))["cpu_s"] for n_chunks in (20, 220))
    return float(1e6 * (long - short) / (n * 200))


def ttft_ms(server: Server, n: int) -> float:
    """Median milliseconds to the first event, four connections."""
    return median(drive(server, Load(n, 4, 2))["ttft_ms"])


def streams(made: Stage, given: argparse.Namespace) -> dict[str, float]:
    """Many streams at once over as many gateways as there are cores: share of chunks that came, and their pace."""
    n_processes = len(os.sched_getaffinity(0))
    n_chunks = int(given.stream_s * 1000 / given.chunk_ms)
    each = given.streams // n_processes
    results: Any = FORK.Queue()
    gateways = [made.gateway(i + 1) for i in range(n_processes)]
    for gateway in gateways:
        drive(gateway, Load(4, 2, 2))  # until it has started
    ports = [gateway.port for gateway in gateways]
    clients = [FORK.Process(target=_drive_into, args=(p, Load(each, each, n_chunks), results)) for p in ports]
    for client in clients:
        client.start()
    found = [results.get() for _ in clients]
    n_events = sum(f["n_events"] for f in found)
    return {
        "kept": n_events / (each * n_processes * n_chunks),
        "a second": n_events / max(f["s"] for f in found),
        "asked a second": each * n_processes * n_chunks / given.stream_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--chunk-ms", type=float, default=50.0)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--stream-s", type=float, default=30.0)
    parser.add_argument("--profile", default=CAPTURED, help="JSON of profile settings for the gateway")
    parser.add_argument("--no-router", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("LLMOPS_CAPTURE_KEY", base64.b64encode(os.urandom(32)).decode())
    sign = signature("aiohttp", "uvicorn", "orjson", **vars(given))
    paced = argparse.Namespace(**{**vars(given), "chunk_ms": 4.0})
    with stage(paced) as made:
        servers = [made.gateway(), made.bare(), *filter(None, [made.router()])]
        if len(servers) == 2:
            unmeasured("beside vllm-router", "ratio", "vllm-router is not installed, or --no-router")
        n, repeat = given.requests, given.repeat
        beside("CPU a request", "us", sign, in_turn(servers, repeat, lambda s: request_us(s, n)))
        beside("CPU a streamed chunk", "us", sign, in_turn(servers, repeat, lambda s: chunk_us(s, n // 30)))
        times = in_turn([*servers, made.direct()], repeat, lambda s: ttft_ms(s, n // 6))
        direct = times.pop("direct")
        added = {name: [a - b for a, b in zip(v, direct, strict=True)] for name, v in times.items()}
        beside("added p50 time to first token", "ms", sign, added)
    if given.streams:
        with stage(given) as made:
            found = streams(made, given)
        figure = f"{given.streams} streams for {given.stream_s:g} s"
        say(f"{figure}: chunks that came", [100 * found["kept"]], "%", sign, {})
        say(f"{figure}: chunks", [found["a second"]], "chunks/s", sign, {"asked": [found["asked a second"]]})


if __name__ == "__main__":
    main()
