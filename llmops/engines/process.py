"""One engine as a child process on loopback: start it, wait until it serves, see it die, stop it.

The child runs under `llmops.engines.guard`, so that neither a stopped nor a killed gateway leaves an engine
behind. Writes the engine's output to a log file. Speaks HTTP only to learn whether the engine is ready; the
rest is `client`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

from llmops.engines import guard, vllm
from llmops.engines.spec import EngineSpec
from llmops.errors import EngineFailed

ASK_EVERY_S = 0.2
GUARD_EXTRA_S = 5.0  # what the guard may take beyond the engine's grace
N_LAST_LINES = 3
_TAIL_BYTES = 64 * 1024
_NOISE = re.compile(r"nanobind|^ - (leaked|\.\.\.)|resource_tracker|warnings\.warn|leaked semaphore|refleaks")
_PREFIX = re.compile(
    r"^\((?:APIServer|EngineCore|Worker|VllmWorker)\S* pid=\d+\) (?:[A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] ?)?"
)
_SAYS_WHY = re.compile(
    r"^\s*[\w.]*(?:Error|Exception|Failed|Refused|Request)\b: \S|\berror: \S|^engine\b.*: "
)


class EngineProcess:
    """An engine child. Start it once; after `stop` or its death make a new one."""

    def __init__(self, spec: EngineSpec, log_path: Path, workspace: Path | None = None) -> None:
        """Prepare the start of `spec`; `workspace` is where a `.venv-vllm` is looked for."""
        self.spec = spec
        self.log_path = log_path
        self._workspace = workspace
        self._guard: subprocess.Popen[bytes] | None = None
        self._reserved: socket.socket | None = None
        self._port = 0
        self._log_start = 0

    @property
    def port(self) -> int:
        """The port on 127.0.0.1, known after `start`."""
        if not self._port:
            raise EngineFailed(f"serving: engine {self.spec.kind} is not running; start it first")
        return self._port

    @property
    def url(self) -> str:
        """Address of the engine's HTTP endpoint, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the guard, which leads the engine's session; None before `start`."""
        return self._guard.pid if self._guard else None

    def start(self) -> None:
        """Start the child and return at once; `wait_ready` says when it serves.

        Raises:
            EngineFailed: it runs already, or there is no such engine on this machine.
            BadRequest: the spec asks for something the engine does not have.
        """
        if self._guard is not None:
            raise EngineFailed(
                f"serving: engine {self.spec.kind} was started before; make a new EngineProcess"
            )
        self._reserved = _reserve_port()
        self._port = self._reserved.getsockname()[1]
        try:
            line, env = self._command()
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            with self.log_path.open("ab") as log:
                self._log_start = log.tell()
                if sys.platform != "linux":
                    self._reserved.close()  # only Linux lets the engine bind beside a reservation
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", guard.__file__, *line],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=env,
                    start_new_session=True,  # a Ctrl-C at the gateway's terminal does not reach the engine
                )
        except BaseException:
            self._release()
            raise

    def alive(self) -> bool:
        """Whether the engine runs (it may not be ready yet)."""
        return self._guard is not None and self._guard.poll() is None

    def exit_code(self) -> int | None:
        """The engine's exit code, None while it runs; 128 + n for signal n."""
        return self._guard.poll() if self._guard else None

    async def wait_ready(self, timeout_s: float, on_wait: Callable[[float], None] | None = None) -> None:
        """Return when the engine answers under its base's name.

        Args:
            timeout_s: how long to wait; the engine is stopped when it is over.
            on_wait: called about five times a second with the seconds waited.

        Raises:
            EngineFailed: the engine ended (noticed at once), or did not answer in time.
        """
        began = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while True:
                if not self.alive():
                    raise EngineFailed(self.last_words("during start"))
                if await self._serves(session):
                    return
                waited = time.monotonic() - began
                if waited > timeout_s:
                    await self.stop()
                    raise EngineFailed(
                        f"serving: engine {self.spec.kind} did not answer within {timeout_s:g} s; "
                        f"see {self.log_path}"
                    )
                if on_wait is not None:
                    on_wait(waited)
                await asyncio.sleep(ASK_EVERY_S)

    async def stop(self, grace_s: float = guard.DEFAULT_GRACE_S) -> None:
        """Stop the engine and all it started: asked first, killed after `grace_s` seconds."""
        child = self._guard
        if child is None:
            return
        if child.stdin is not None and not child.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(f"{grace_s}\n".encode())
                child.stdin.flush()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        try:
            await asyncio.to_thread(child.wait, grace_s + GUARD_EXTRA_S)
        except subprocess.TimeoutExpired:
            child.kill()  # the kernel then kills the engine: guard's _die_with_guard
            await asyncio.to_thread(child.wait)
        if child.returncode < 0:
            _kill_session(child.pid)
        self._release()

    def last_words(self, when: str) -> str:
        """One sentence on how the engine ended: exit code and the lines of its log that say why."""
        lines = telling_lines(self._output())
        said = "; last lines: " + " | ".join(lines) if lines else "; it said nothing"
        ended = f"serving: engine {self.spec.kind} ended with code {self.exit_code()} {when}"
        return f"{ended}{said}; see {self.log_path}"

    def _command(self) -> tuple[list[str], dict[str, str]]:
        inherited = dict(os.environ)
        if self.spec.kind == "vllm":
            return vllm.command(self.spec, self.port, self._workspace), vllm.environment(self.spec, inherited)
        package_parent = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package_parent, inherited.get("PYTHONPATH")]))
        return _embedded_command(self.spec, self.port), inherited | {
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": path,
        }

    async def _serves(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/health") as answer:
                if answer.status != 200:
                    return False
            async with session.get(f"{self.url}/v1/models") as answer:
                body = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        return self.spec.base_name in {model.get("id") for model in body.get("data", [])}

    def _output(self) -> str:
        """The end of what this run wrote to the log."""
        try:
            with self.log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _TAIL_BYTES))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def _release(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None


def telling_lines(output: str) -> list[str]:
    """The up to three lines of an engine's output that best say why it ended, each cut at 300 characters.

    The last lines are often not the ones: vLLM ends with notes on leaked objects, and repeats one error per
    process.
    """
    lines = [_PREFIX.sub("", line).strip() for line in output.splitlines()]
    lines = [line[:300] for line in lines if line and not _NOISE.search(line)]
    reasons = [line for line in lines if _SAYS_WHY.search(line)]
    return list(dict.fromkeys(reasons or lines))[-N_LAST_LINES:]


def _embedded_command(spec: EngineSpec, port: int) -> list[str]:
    line = [
        str(spec.python or sys.executable),
        "-P",  # a workspace may have a folder named like a library
        "-m",
        "llmops.engines.embedded",
        "--model",
        str(spec.base_path),
    ]
    line += ["--served-model-name", spec.base_name, "--host", "127.0.0.1", "--port", str(port)]
    line += ["--dtype", spec.dtype, "--device", spec.device, "--max-model-len", str(spec.max_model_tokens)]
    line += ["--max-loras", str(spec.max_adapters), "--max-num-seqs", str(spec.max_num_seqs)]
    if spec.chat_template is not None:
        line += ["--chat-template", str(spec.chat_template)]
    if spec.n_threads is not None:
        line += ["--threads", str(spec.n_threads)]
    return [*line, *spec.extra_args]


def _kill_session(leader: int) -> None:
    """Kill what is left of the session of a guard that was itself killed (Linux).

    The kernel takes only the guard's own child along; vLLM's core and workers survive the death of their
    server. A session keeps its leader's number from being used again, so that these are ours.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            session = (entry / "stat").read_text().rpartition(")")[2].split()[3]
            if int(session) == leader:
                os.kill(int(entry.name), signal.SIGKILL)


def _reserve_port() -> socket.socket:
    """A bound socket that never listens: keeps the port for the engine, which sets SO_REUSEADDR as well."""
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved
