"""The serving profile: which base on which engine, where it listens, and how much it takes on. One YAML file each.

Reads no files but the profile itself, and starts nothing.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llmops.engines.spec import EngineSpec
from llmops.registry.bases import Base
from llmops.settings import load_yaml

Device = Literal["auto", "cpu", "cuda"]
_HOST_NAME = re.compile(r"(\*\.)?[a-z0-9][a-z0-9._-]{0,252}")
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
    max_headers: int = Field(100, ge=10)
    """Most headers of a request; more are answered 431."""
    max_header_bytes: int = Field(32 * 1024, ge=1024, le=60 * 1024)
    """Most bytes of all header names and values together; more are answered 431."""


class Timeouts(_Settings):
    """How long the gateway waits, in seconds."""

    engine_start_s: float = Field(900.0, gt=0)
    """For the engine to answer after its start."""
    answer_s: float = Field(600.0, gt=0)
    """For one whole answer; then the client gets 504 and the engine stops working on it."""
    drain_s: float = Field(30.0, ge=0)
    """For running requests to finish when serving stops or the engine is restarted; then they are cut off."""


class Tls(_Settings):
    """HTTPS instead of HTTP. Read at the start: a renewed certificate needs a new start."""

    certificate: Path
    """PEM file with the certificate and those that signed it."""
    key: Path
    """PEM file with its private key, without a passphrase."""


class Price(_Settings):
    """What 1,000 tokens cost."""

    prompt: float = Field(0.0, ge=0)
    """Of prompts."""
    completion: float = Field(0.0, ge=0)
    """Of answers."""


class Prices(_Settings):
    """What use costs, for `llmops usage`; a change counts from the next start on."""

    currency: str = Field(pattern=r"^[A-Z]{3}$")
    """Such as EUR; amounts of two currencies are never added."""
    default: Price = Price()
    """For every model that is not named."""
    models: dict[str, Price] = {}
    """By the name that is asked for."""

    def cost(self, model: str, n_prompt_tokens: int, n_completion_tokens: int) -> float:
        """The cost of one request.

        >>> Prices(currency="EUR", default=Price(prompt=0.5, completion=2.0)).cost("docs", 2000, 500)
        2.0
        """
        price = self.models.get(model, self.default)
        return (price.prompt * n_prompt_tokens + price.completion * n_completion_tokens) / 1000


class ServeProfile(_Settings):
    """Everything `llmops serve` needs to know."""

    base_model: str
    """As in a recipe: a folder, `pypi:NAME==VERSION/FILE.gguf`, or a hub id."""
    engine: Annotated[TransformersEngine | VllmEngine, Field(discriminator="kind")]
    """The engine and its settings; `kind` says which."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than loopback need a key first: `llmops key create`."""
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
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the gateway may be asked beside its address, `*.example.com` for all below one."""
    open_metrics: bool = False
    """Whether GET /metrics needs no key where there are keys; it tells names and load."""
    tls: Tls | None = None
    """Certificate and key for HTTPS."""
    prices: Prices | None = None
    """What 1,000 tokens cost; left out: use is counted, not priced."""

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST_NAME.fullmatch(host):
                raise ValueError(
                    f"{host!r} is no host name; use small letters, without port, or *.example.com"
                )
        return hosts


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`.

    >>> [is_loopback(h) for h in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "box.example")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Whether `host` is an address, and no name that could be made to stand for another one.

    >>> [is_address(h) for h in ("10.0.0.7", "::1", "box.example")]
    [True, True, False]
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def load_profile(path: Path, changes: tuple[tuple[str, object], ...] = ()) -> ServeProfile:
    """The profile in a YAML file; `changes` are dotted names of settings and what they are instead.

    Raises:
        ConfigError: it cannot be read, or says something wrong; names the setting.
    """
    return load_yaml(path, ServeProfile, changes)


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
