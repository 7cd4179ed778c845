"""The serving profile: which base on which engine, where it listens, and how much it takes on. One YAML file each.

Reads no files but the profile itself, and starts nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llmops.engines.spec import EngineSpec
from llmops.registry.bases import Base
from llmops.settings import load_yaml

Device = Literal["auto", "cpu", "cuda"]
_NVIDIA_DEVICE = Path("/dev/nvidiactl")  # asked for instead of torch, which takes seconds to import


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TransformersEngine(_Settings):
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


class VllmEngine(_Settings):
    """`vllm serve` in a child process: for a GPU, and for what production does on a CPU."""

    kind: Literal["vllm"]
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of weights and computation; part of the engine's signature."""
    device: Device = "auto"
    """`auto` takes an NVIDIA GPU when there is one."""
    quantization: str | None = None
    """vLLM's `--quantization`; part of the engine's signature."""
    max_num_seqs: int = Field(64, ge=1)
    """Answers that are generated at once; further ones wait in the engine."""
    python: Path | None = None
    """Interpreter of the venv that has vLLM; left out: the workspace's .venv-vllm, else the running one."""
    kv_cache_gib: int = Field(1, ge=1)
    """Size of the key-value cache on a CPU, in GiB."""
    n_threads: int | None = Field(None, ge=1)
    """CPU threads; left out: as many as there are cores, or OMP_NUM_THREADS."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of `vllm serve`. The engine's signature does not tell them: none that change answers."""


class Limits(_Settings):
    """What the gateway takes on before it refuses."""

    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    """Largest request body; a larger one is answered 413."""
    max_n: int = Field(8, ge=1)
    """Largest `n` (answers to one prompt)."""
    max_prompts: int = Field(128, ge=1)
    """Most prompts in one request to /v1/completions."""
    max_requests: int = Field(256, ge=1)
    """Requests under way at once, generating or waiting in the engine; one more is answered 429."""


class Timeouts(_Settings):
    """How long the gateway waits, in seconds."""

    engine_start_s: float = Field(900.0, gt=0)
    """For the engine to answer after its start."""
    answer_s: float = Field(600.0, gt=0)
    """For one whole answer; then the client gets 504 and the engine stops working on it."""
    drain_s: float = Field(30.0, ge=0)
    """For running requests to finish when serving stops or the engine is restarted; then they are cut off."""


class ServeProfile(_Settings):
    """Everything `llmops serve` needs to know."""

    base_model: str
    """As in a recipe: a folder, `pypi:NAME==VERSION/FILE.gguf`, or a hub id."""
    engine: Annotated[TransformersEngine | VllmEngine, Field(discriminator="kind")]
    """The engine and its settings; `kind` says which."""
    host: str = "127.0.0.1"
    """Address to listen on; loopback alone, while there are no keys."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes any free one."""
    max_model_tokens: int = Field(2048, ge=16)
    """Tokens of prompt and answer together."""
    slots: int = Field(5, ge=1)
    """Adapters in the engine at once: champion, previous champion, canary, shadow and a candidate under evaluation."""
    max_lora_rank: int = Field(64, ge=1, le=512)
    """Largest rank of an adapter; memory is set aside for it in every slot."""
    limits: Limits = Limits()
    """What is refused."""
    timeouts: Timeouts = Timeouts()
    """How long is waited."""

    @field_validator("host")
    @classmethod
    def _loopback_only(cls, host: str) -> str:
        if not is_loopback(host):
            raise ValueError(
                "this address can be reached from other machines and there are no keys to keep them out; use 127.0.0.1 "
                "(and a tunnel or an authenticating proxy to reach it from elsewhere)"
            )
        return host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`.

    >>> [is_loopback(h) for h in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "box.example")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_profile(path: Path) -> ServeProfile:
    """The profile in a YAML file.

    Raises:
        ConfigError: it cannot be read, or says something wrong; names the setting.
    """
    return load_yaml(path, ServeProfile)


def engine_spec(profile: ServeProfile, base: Base) -> EngineSpec:
    """What the engine is told for this profile on this machine."""
    engine = profile.engine
    device = engine.device
    if device == "auto":
        device = "cuda" if _NVIDIA_DEVICE.exists() else "cpu"
    spec = EngineSpec(
        kind=engine.kind,
        base_path=base.path,
        base_name=base.model_name,
        base_digest=base.digest,
        dtype=engine.dtype,
        device=device,
        max_model_tokens=profile.max_model_tokens,
        max_adapters=profile.slots,
        max_lora_rank=profile.max_lora_rank,
        max_num_seqs=engine.max_num_seqs,
        n_threads=engine.n_threads,
    )
    if isinstance(engine, TransformersEngine):
        return spec
    return replace(
        spec,
        quantization=engine.quantization,
        python=engine.python,
        kv_cache_gib=engine.kv_cache_gib,
        extra_args=engine.extra_args,
    )
