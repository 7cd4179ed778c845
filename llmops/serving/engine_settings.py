"""The engine's part of a serving profile: which kind, and everything that it is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Device = Literal["auto", "cpu", "cuda"]
ExtraArg = bool | int | float | str | tuple[int | float | str, ...]
SET_ELSEWHERE = {
    **dict.fromkeys(("model", "served-model-name", "tokenizer", "revision"), "base_model"),
    **dict.fromkeys(
        ("host", "port", "api-key", "uds", "root-path"), "the gateway, which alone may reach the engine"
    ),
    **dict.fromkeys(("chat-template", "generation-config"), "the prompt contract"),
    "dtype": "engine.dtype",
    "quantization": "engine.quantization",
    "max-model-len": "max_model_tokens",
    "max-num-seqs": "engine.max_num_seqs",
    "max-loras": "slots",
    "max-lora-rank": "max_lora_rank",
    "tensor-parallel-size": "engine.tensor_parallel",
    "pipeline-parallel-size": "engine.pipeline_parallel",
    "gpu-memory-utilization": "engine.gpu_memory_frac",
    "enable-lora": "the gateway",
    "api-server-count": "the gateway: adapters can be loaded at run time on one alone",
    "otlp-traces-endpoint": "tracing",
}
"""Arguments of `vllm serve` that a profile sets by other words."""


class Settings(BaseModel):
    """A part of the profile: every setting is known, and none changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TransformersEngine(Settings):
    """The embedded engine: transformers and PEFT in a child process; works wherever torch does."""

    kind: Literal["transformers"]
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of weights and computation; part of the engine's signature."""
    device: Device = "auto"
    """`auto` takes an NVIDIA GPU when there is one."""
    max_num_seqs: int = Field(16, ge=1)
    """Answers that are generated at once; further ones wait in the engine."""
    n_threads: int | None = Field(None, ge=1)
    """CPU threads; left out: as many as there are cores, or OMP_NUM_THREADS."""


class VllmEngine(Settings):
    """`vllm serve` in a child process: for a GPU, and for what production does on a CPU."""

    kind: Literal["vllm"]
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of weights and computation; part of the engine's signature."""
    device: Device = "auto"
    """`auto` takes an NVIDIA GPU when there is one."""
    quantization: str | None = None
    """vLLM's `--quantization`; part of the engine's signature."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share every layer of the base."""
    pipeline_parallel: int = Field(1, ge=1)
    """Groups of GPUs that hold the base's layers one after the other."""
    gpu_memory_frac: float | None = Field(None, gt=0, lt=1)
    """Share of a GPU's memory that vLLM takes; left out: its own 0.9."""
    max_num_seqs: int = Field(64, ge=1)
    """Answers that are generated at once; further ones wait in the engine."""
    python: Path | None = None
    """Interpreter of the venv that has vLLM; left out: the workspace's .venv-vllm, else the running one."""
    kv_cache_gib: int = Field(1, ge=1)
    """Size of the key-value cache on a CPU, in GiB."""
    n_threads: int | None = Field(None, ge=1)
    """CPU threads; left out: as many as there are cores, or OMP_NUM_THREADS."""
    extra_args: dict[str, ExtraArg] = {}
    """Further arguments of `vllm serve` by name, without dashes: a value, a list of values, true for a bare flag. The
    engine's signature does not tell them: none that change answers."""

    @field_validator("extra_args")
    @classmethod
    def _not_ours(cls, extra: dict[str, ExtraArg]) -> dict[str, ExtraArg]:
        for name in extra:
            if name.startswith("-") or not re.fullmatch(r"[a-z0-9-]+", name):
                raise ValueError(
                    f"{name!r}: write the argument's name without dashes before it and in small letters"
                )
            if name in SET_ELSEWHERE:
                raise ValueError(f"{name} is set by {SET_ELSEWHERE[name]}")
        return extra


class HttpEngine(Settings):
    """An engine that somebody else runs, such as the pods of a cluster; nothing is started. It must be reachable by
    this gateway alone: whoever else reaches it needs no key.
    """

    kind: Literal["http"]
    url: str = Field(pattern=r"^https?://[^/\s]+$")
    """Where completions are asked for: the engine, or a router in front of its replicas."""
    replicas: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+$")], ...] = ()
    """Address of every replica, where adapters are loaded; left out: `url`."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """What runs there; part of the engine's signature, as the next four are."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format it was started with."""
    quantization: str | None = None
    """Quantisation it was started with."""
    device: Literal["cpu", "cuda"] = "cuda"
    """What it computes on."""
    device_name: str | None = None
    """Full name of the device, such as NVIDIA H200; left out: `device`."""
    served_as: str | None = None
    """Its name of the base model (`--served-model-name`); left out: `base@` and twelve digits of the base's digest."""
    adapters_at: Path | None = None
    """Where it sees this workspace's `.llmops/store/adapter`; left out: under the same path."""


def vllm_arguments(engine: VllmEngine, traces_to: str | None) -> tuple[str, ...]:
    """Arguments of `vllm serve` that `engines.vllm` does not make of the spec; `traces_to` is where its spans go.

    >>> vllm_arguments(VllmEngine(kind="vllm", tensor_parallel=2, extra_args={"enforce-eager": True}), None)
    ('--tensor-parallel-size', '2', '--enforce-eager')
    """
    named: dict[str, ExtraArg] = {}
    if engine.tensor_parallel > 1:
        named["tensor-parallel-size"] = engine.tensor_parallel
    if engine.pipeline_parallel > 1:
        named["pipeline-parallel-size"] = engine.pipeline_parallel
    if engine.gpu_memory_frac is not None:
        named["gpu-memory-utilization"] = engine.gpu_memory_frac
    if traces_to is not None:
        named["otlp-traces-endpoint"] = traces_to
    line: list[str] = []
    for name, value in {**named, **engine.extra_args}.items():
        if value is False:
            line.append(f"--no-{name}")
            continue
        line.append(f"--{name}")
        if value is not True:
            line += [str(v) for v in (value if isinstance(value, tuple) else (value,))]
    return tuple(line)
