"""How the embedded engine starts, refuses to start, and stops."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.engines.embedded_child import Child, command, running
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("start") / "model")


def fails(line: list[str], code: int) -> str:
    """Run an engine that cannot start; return the one line it says why."""
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == code, ended.stderr
    said = [text for text in ended.stderr.splitlines() if text.startswith("engine: ")]
    assert len(said) == 1
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    return said[0]


def test_a_missing_model_folder_ends_with_5_and_its_path(tmp_path):
    assert f"--model {tmp_path / 'none'}: no config.json there" in fails(command(tmp_path / "none"), 5)


@pytest.mark.walk
def test_truncated_weights_end_with_5_and_the_reason(model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert f"{broken}: the model's weights cannot be loaded" in fails(command(broken), 5)


@pytest.mark.walk
def test_an_unknown_architecture_ends_with_5(model, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(model, odd)
    config = json.loads((odd / "config.json").read_text()) | {"model_type": "no_such_model"}
    (odd / "config.json").write_text(json.dumps(config))
    assert f"{odd}: the model's config cannot be loaded" in fails(command(odd), 5)


def test_a_taken_port_ends_with_5_before_the_weights_load(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        said = fails(command(tmp_path / "none", ["--port", str(port)]), 5)
    assert f"--port {port}: 127.0.0.1 cannot be bound" in said


def test_an_address_open_to_others_ends_with_2(model):
    assert "--host 0.0.0.0" in fails(command(model, ["--host", "0.0.0.0"]), 2)


@pytest.mark.walk
def test_a_context_over_the_models_positions_ends_with_5(model):
    said = fails(command(model, ["--max-model-len", "1024"]), 5)
    assert "--max-model-len 1024 is over the model's 512 positions" in said


def test_sigterm_lets_running_answers_finish_takes_no_new_ones_and_exits_0(model):
    with running(model) as engine, ThreadPoolExecutor(2) as pool:
        mapped = Path(f"/proc/{engine.process.pid}/maps").read_text()
        assert "/torch/" in mapped
        assert not re.findall("/(scipy|sklearn|pandas|torchao|bitsandbytes)/", mapped), (
            "no use for it, slow to load"
        )
        body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True}
        whole = pool.submit(engine.post, "/v1/completions", body)
        stream = pool.submit(engine.post, "/v1/completions", body | {"stream": True})
        engine.wait_for_load(2)
        engine.process.send_signal(signal.SIGTERM)
        wait_until_refusing(engine)
        assert whole.result().json()["usage"]["completion_tokens"] == 400
        assert stream.result().text.endswith("data: [DONE]\n\n")
        assert engine.process.wait(60) == 0


@pytest.mark.walk
def test_a_second_of_grace_ends_answers_that_take_longer(model, tmp_path):
    endless = build_tiny_model(tmp_path / "endless", max_len=200_000)
    with running(endless, ["--shutdown-timeout", "1"]) as engine, ThreadPoolExecutor(1) as pool:
        body = {"prompt": "Once", "max_tokens": 190_000, "ignore_eos": True}
        cut = pool.submit(engine.post, "/v1/completions", body)
        engine.wait_for_load(1)
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(60) == 0
        with pytest.raises(httpx.TransportError):
            cut.result()


def wait_until_refusing(engine: Child) -> None:
    while True:
        try:
            httpx.get(engine.url + "/health", timeout=30)
        except httpx.TransportError:
            return
