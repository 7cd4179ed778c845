"""Engines as child processes: the real embedded engine and real children, never a double."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmops.engines import guard
from llmops.engines.client import EngineClient
from llmops.engines.process import EngineProcess, telling_lines
from llmops.engines.spec import EngineSpec, signature
from llmops.errors import EngineFailed

BASE = "base@0123456789ab"
ROOT = Path(__file__).parents[2]


def spec_of(model: Path) -> EngineSpec:
    return EngineSpec(
        kind="transformers",
        base_path=model,
        base_name=BASE,
        base_digest="0123456789ab" + "0" * 52,
        dtype="float32",
        max_model_tokens=256,
        max_adapters=2,
        max_num_seqs=4,
        n_threads=1,
    )


def running_with(text: str) -> list[int]:
    """Ids of the processes whose command line has `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if text.encode() in line and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def wait_until(holds: Callable[[], object], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.05)


async def test_a_started_engine_serves_its_base_and_a_stopped_one_leaves_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    engine = EngineProcess(spec_of(tiny_model), tmp_path / "logs" / "engine.log")
    waits: list[float] = []
    engine.start()
    try:
        await engine.wait_ready(120, waits.append)
        assert engine.alive()
        assert engine.exit_code() is None
        async with EngineClient(engine.url) as client:
            assert await client.models() == [BASE]
            version = await client.version()
        port = f"--port\0{engine.port}\0"
        assert len(running_with(port)) == 2  # the engine and its guard
        assert waits == sorted(waits)
        assert waits
    finally:
        await engine.stop()
    assert not engine.alive()
    assert running_with(port) == []
    assert signature(engine.spec, version).engine == "transformers"
    with socket.socket() as free:
        free.bind(("127.0.0.1", engine.port))


@pytest.mark.walk
async def test_an_engine_whose_model_is_broken_is_noticed_with_its_reason(
    tiny_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((tiny_model / "config.json").read_text())
    engine = EngineProcess(spec_of(broken), tmp_path / "engine.log")
    engine.start()
    with pytest.raises(EngineFailed) as failed:
        await engine.wait_ready(120)
    said = str(failed.value)
    assert said.startswith("serving: engine transformers ended with code 5 during start; last lines: ")
    assert said.endswith(f"see {tmp_path / 'engine.log'}")
    assert "broken" in said.split("last lines: ")[1]
    assert not engine.alive()
    assert engine.exit_code() == 5
    await engine.stop()


async def test_an_engine_that_never_answers_is_stopped_when_its_time_is_over(
    tiny_model: Path, tmp_path: Path
) -> None:
    stuck = tmp_path / "python"
    stuck.write_text("#!/bin/sh\nexec sleep 600.125\n")
    stuck.chmod(0o755)
    engine = EngineProcess(replace(spec_of(tiny_model), python=stuck), tmp_path / "engine.log")
    engine.start()
    wait_until(lambda: running_with("600.125"))
    with pytest.raises(EngineFailed, match="did not answer within 1 s"):
        await engine.wait_ready(1)
    assert not engine.alive()
    assert running_with("600.125") == []


@pytest.mark.walk
async def test_the_death_of_a_serving_engine_shows_with_its_signal(tiny_model: Path, tmp_path: Path) -> None:
    engine = EngineProcess(spec_of(tiny_model), tmp_path / "engine.log")
    engine.start()
    try:
        await engine.wait_ready(120)
        (child,) = (pid for pid in running_with(f"--port\0{engine.port}\0") if pid != engine.pid)
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: not engine.alive())
        assert engine.exit_code() == 128 + signal.SIGKILL
        assert "ended with code 137 while serving" in engine.last_words("while serving")
    finally:
        await engine.stop()


def test_a_killed_gateway_leaves_no_engine(tiny_model: Path, tmp_path: Path) -> None:
    """The gateway is a process of its own here; SIGKILL gives it no chance to clean up, whatever its engine is at."""
    gateway = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from llmops.engines.process import EngineProcess
        from tests.engines.test_process import spec_of

        engine = EngineProcess(spec_of(Path({str(tiny_model)!r})), Path({str(tmp_path / "engine.log")!r}))
        engine.start()
        print(engine.port, flush=True)
        time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", gateway], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        wait_until(lambda: len(running_with(f"--port\0{port}\0")) == 2)  # the engine and its guard
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not running_with(f"--port\0{port}\0"))


def test_the_guard_kills_what_ignores_it_and_the_children_of_what_ended(tmp_path: Path) -> None:
    deaf = "trap '' TERM; sleep 611.5 & sleep 611.5"
    process = subprocess.Popen(
        [sys.executable, "-I", guard.__file__, "sh", "-c", deaf], stdin=subprocess.PIPE
    )
    wait_until(lambda: len(running_with("sleep\x00611.5")) == 2)
    process.communicate(b"0.2\n", timeout=20)
    assert process.returncode == 128 + signal.SIGKILL
    wait_until(lambda: not running_with("sleep\x00611.5"))

    leaving = "sleep 612.5 & exit 7"
    process = subprocess.Popen(
        [sys.executable, "-I", guard.__file__, "sh", "-c", leaving], stdin=subprocess.PIPE
    )
    assert process.wait(20) == 7
    wait_until(lambda: not running_with("sleep\x00612.5"))


def test_a_killed_guard_takes_its_engine_along() -> None:
    process = subprocess.Popen(
        [sys.executable, "-I", guard.__file__, "sleep", "613.5"], stdin=subprocess.PIPE
    )
    wait_until(lambda: len(running_with("sleep\x00613.5")) == 2)
    process.kill()
    process.wait()
    wait_until(lambda: not running_with("sleep\x00613.5"))


async def test_two_engines_at_once_never_meet_on_a_port(tiny_model: Path, tmp_path: Path) -> None:
    engines = [EngineProcess(spec_of(tiny_model), tmp_path / f"{i}.log") for i in range(2)]
    for engine in engines:
        engine.start()
    try:
        assert engines[0].port != engines[1].port
        with pytest.raises(EngineFailed, match="started before"):
            engines[0].start()
    finally:
        for engine in engines:
            await engine.stop(grace_s=0)


def test_telling_lines_are_the_errors_and_not_the_noise_after_them() -> None:
    """From real logs of vLLM 0.32.0: a folder without weights, then the notes another run ended with."""
    output = (Path(__file__).parent / "vllm_dead_at_start.log").read_text()
    lines = telling_lines(output)
    assert any("Cannot find any model weights" in line for line in lines)
    assert not any("leaked" in line or "pid=" in line for line in lines)
    assert telling_lines("plain words\nwithout an error\n") == ["plain words", "without an error"]
    assert telling_lines("") == []


def test_a_signature_names_all_that_changes_answers(tiny_model: Path) -> None:
    one = signature(spec_of(tiny_model), "5.19.0", "NVIDIA H200")
    assert json.loads(json.dumps(one.__dict__)) == {
        "engine": "transformers",
        "version": "5.19.0",
        "dtype": "float32",
        "quantization": None,
        "device": "NVIDIA H200",
        "base": "0123456789ab" + "0" * 52,
        "max_model_tokens": 256,
    }
