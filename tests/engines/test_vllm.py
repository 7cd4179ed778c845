"""How vLLM is started: the parts that need no vLLM. That the line works is proven in the vllm tier."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmops.engines import vllm
from llmops.engines.process import EngineProcess
from llmops.engines.spec import EngineSpec
from llmops.errors import BadRequest, EngineFailed


@pytest.fixture
def spec(tiny_model: Path) -> EngineSpec:
    return EngineSpec("vllm", tiny_model, "base@0123456789ab", "0" * 64, dtype="float32", max_adapters=3)


def fake_venv(root: Path) -> Path:
    command = root / "bin" / "vllm"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    return command


def flags(line: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in line:
        if word.startswith("--"):
            found[word] = []
        elif found:
            found[list(found)[-1]].append(word)
    return found


def test_a_missing_vllm_is_refused_with_the_way_to_install_it(spec: EngineSpec, tmp_path: Path) -> None:
    engine = EngineProcess(spec, tmp_path / "engine.log", tmp_path)
    if not (Path(sys.prefix) / "bin" / "vllm").exists():
        with pytest.raises(EngineFailed, match=r"install-vllm-cpu\.sh"):
            engine.start()
    assert not engine.alive()
    with pytest.raises(EngineFailed, match=r"nowhere/bin/vllm"):
        vllm.find_vllm(replace(spec, python=Path("/nowhere/bin/python")), tmp_path)


def test_the_workspaces_venv_is_found_and_a_named_interpreter_wins(spec: EngineSpec, tmp_path: Path) -> None:
    command = fake_venv(tmp_path / ".venv-vllm")
    assert vllm.find_vllm(spec, tmp_path) == command
    other = fake_venv(tmp_path / "other")
    assert vllm.find_vllm(replace(spec, python=other.parent / "python"), tmp_path) == other


def test_on_a_cpu_one_slot_is_kept_empty_and_only_inner_layers_get_adapters(
    spec: EngineSpec, tmp_path: Path
) -> None:
    fake_venv(tmp_path / ".venv-vllm")
    on_cpu = flags(vllm.command(spec, 1234, tmp_path))
    assert on_cpu["--max-loras"] == ["4"]
    assert not spec.unload_frees_slot
    inner = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert on_cpu["--lora-target-modules"] == inner  # no lm_head, no embed_tokens, no norms
    assert on_cpu["--host"] == ["127.0.0.1"]
    on_gpu = replace(spec, device="cuda")
    assert flags(vllm.command(on_gpu, 1234, tmp_path))["--max-loras"] == ["3"]
    assert on_gpu.unload_frees_slot


def test_extra_args_come_last_and_take_over_the_adapter_layers(spec: EngineSpec, tmp_path: Path) -> None:
    fake_venv(tmp_path / ".venv-vllm")
    extra = ("--lora-target-modules", "o_proj", "--swap-space", "0")
    line = vllm.command(replace(spec, extra_args=extra), 1234, tmp_path)
    assert tuple(line[-4:]) == extra
    assert line.count("--lora-target-modules") == 1


def test_a_base_without_safetensors_is_refused(spec: EngineSpec, tmp_path: Path) -> None:
    fake_venv(tmp_path / ".venv-vllm")
    with pytest.raises(BadRequest, match="safetensors"):
        vllm.command(replace(spec, base_path=tmp_path), 1234, tmp_path)


@pytest.mark.parametrize("rank", [0, -1, 513])
def test_a_rank_vllm_does_not_have_is_refused(rank: int) -> None:
    with pytest.raises(BadRequest, match=f"max_lora_rank {rank}"):
        vllm.lora_rank_setting(rank)


def test_the_environment_keeps_the_engine_quiet_closed_and_offline(spec: EngineSpec) -> None:
    inherited = {
        "PATH": "/bin",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_API_KEY": "secret",
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "PYTHONPATH": "/somewhere",
        "OMP_NUM_THREADS": "3",
    }
    env = vllm.environment(spec, inherited)
    assert not {
        "VLLM_SERVER_DEV_MODE",
        "VLLM_ALLOW_INSECURE_SERIALIZATION",
        "VLLM_API_KEY",
        "PYTHONPATH",
    } & set(env)
    assert env["PATH"] == "/bin"
    assert env["VLLM_PLUGINS"] == ""
    assert env["HF_HUB_OFFLINE"] == env["DO_NOT_TRACK"] == env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert env["OMP_NUM_THREADS"] == "3"
    assert vllm.environment(replace(spec, n_threads=2), inherited)["OMP_NUM_THREADS"] == "2"
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in vllm.environment(replace(spec, device="cuda"), inherited)
