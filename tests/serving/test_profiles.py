"""What a profile says of vLLM reaches its command line, by name, and nothing that is set elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmops.engines import vllm
from llmops.errors import ConfigError
from llmops.records import PromptContract
from llmops.registry.bases import Base
from llmops.serving.engine_settings import SET_ELSEWHERE
from llmops.serving.profile import engine_spec, load_profile
from tests.serving.gateway import write_profile

ROOT = Path(__file__).parents[2]
CONTRACT = PromptContract("{{ messages }}", "t" * 64, (2,))


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return Base("tiny", tmp_path, "b" * 64, CONTRACT)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter beside which there is a `vllm` command."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "vllm"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder / "python"


def command_of(path: Path, base: Base) -> list[str]:
    return vllm.command(engine_spec(load_profile(path), base), 1234)


def profile(folder: Path, python: Path, extra: dict[str, Any], **more: Any) -> Path:
    engine = {
        "kind": "vllm",
        "device": "cuda",
        "python": str(python),
        "extra_args": extra,
        **more.pop("engine", {}),
    }
    return write_profile(folder, folder, engine=engine, **more)


def test_extra_arguments_are_passed_by_name(tmp_path: Path, base: Base, python: Path) -> None:
    extra = {
        "enforce-eager": True,
        "enable-prefix-caching": False,
        "max-num-batched-tokens": 8192,
        "lora-target-modules": ["q_proj", "v_proj"],
        "tool-call-parser": "hermes",
    }
    line = command_of(profile(tmp_path, python, extra), base)
    assert line[-9:] == [
        "--no-enable-prefix-caching", "--enforce-eager", "--lora-target-modules", "q_proj", "v_proj",
        "--max-num-batched-tokens", "8192", "--tool-call-parser", "hermes",
    ]  # fmt: skip


def test_parallelism_memory_and_traces_become_arguments(tmp_path: Path, base: Base, python: Path) -> None:
    engine = {"tensor_parallel": 4, "pipeline_parallel": 2, "gpu_memory_frac": 0.8}
    tracing = {"endpoint": "http://collector:4318/v1/traces", "engine": True}
    line = command_of(profile(tmp_path, python, {}, engine=engine, tracing=tracing), base)
    for name, value in (
        ("--tensor-parallel-size", "4"), ("--pipeline-parallel-size", "2"), ("--gpu-memory-utilization", "0.8"),
        ("--otlp-traces-endpoint", "http://collector:4318/v1/traces"),
    ):  # fmt: skip
        assert line[line.index(name) + 1] == value


@pytest.mark.parametrize("name", sorted(SET_ELSEWHERE))
def test_argument_that_is_set_elsewhere_is_refused(tmp_path: Path, python: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is set by"):
        load_profile(profile(tmp_path, python, {name: "x"}))


@pytest.mark.parametrize("name", ["--enforce-eager", "Enforce", "enforce_eager", "x y"])
def test_argument_that_is_no_name_is_refused(tmp_path: Path, python: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="without dashes before it"):
        load_profile(profile(tmp_path, python, {name: True}))


def test_every_argument_we_pass_ourselves_is_refused_in_extra_arguments(
    tmp_path: Path, base: Base, python: Path
) -> None:
    line = command_of(profile(tmp_path, python, {}), base)
    ours = {word.removeprefix("--") for word in line if word.startswith("--")}
    free = {
        "max-logprobs",
        "shutdown-timeout",
        "disable-access-log-for-endpoints",
    }  # may be said again, the last counts
    assert ours - free <= SET_ELSEWHERE.keys()


def test_gpu_profile_says_what_its_comments_say() -> None:
    chosen = load_profile(ROOT / "serving" / "vllm-gpu.yaml")
    assert chosen.limits.max_low_priority < chosen.limits.max_requests
    assert chosen.engine.kind == "vllm"
    assert chosen.limits.max_requests >= chosen.engine.max_num_seqs
