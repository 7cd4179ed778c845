"""The serving profile: which base on which engine, where it listens, and how much it takes on. One YAML file each.

Reads no files but the profile itself, and starts nothing.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from llmops.capture.config import CaptureSettings
from llmops.engines.spec import EngineSpec
from llmops.listening import is_loopback
from llmops.registry.bases import Base
from llmops.serving.engine_settings import (
    HttpEngine,
    Settings,
    TransformersEngine,
    VllmEngine,
    vllm_arguments,
)
from llmops.settings import load_yaml

_HOST_NAME = re.compile(r"(\*\.)?[a-z0-9][a-z0-9._-]{0,252}")
_NVIDIA_DEVICE = Path("/dev/nvidiactl")  # asked for instead of torch, which takes seconds to import


class Limits(Settings):
    """What the gateway takes on before it refuses."""

    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    """Largest request body; a larger one is answered 413."""
    max_n: int = Field(8, ge=1)
    """Largest `n` (answers to one prompt)."""
    max_prompts: int = Field(128, ge=1)
    """Most prompts in one request to /v1/completions."""
    max_requests: int = Field(256, ge=1)
    """Requests at the engine at once, generating or waiting there; further ones wait in the gateway."""
    max_waiting: int = Field(512, ge=0)
    """Requests that wait in the gateway; one more is answered 429 with Retry-After."""
    max_low_priority: int = Field(8, ge=1)
    """A request of low priority (`llmops batch`) begins only while fewer than so many of any kind are at the engine."""
    max_headers: int = Field(100, ge=10)
    """Most headers of a request; more are answered 431."""
    max_header_bytes: int = Field(32 * 1024, ge=1024, le=60 * 1024)
    """Most bytes of all header names and values together; more are answered 431."""


class Timeouts(Settings):
    """How long the gateway waits, in seconds."""

    engine_start_s: float = Field(900.0, gt=0)
    """For the engine to answer after its start."""
    answer_s: float = Field(600.0, gt=0)
    """For one whole answer, its wait for a place included; then the client gets 504 and the engine stops working on
    it. A client may ask for less: header x-llmops-deadline-s."""
    queue_s: float = Field(30.0, gt=0)
    """For a place at the engine, while others have them all; then the client gets 503 with Retry-After."""
    body_s: float = Field(30.0, gt=0)
    """For all of a request's body to come; then the client gets 408."""
    drain_s: float = Field(30.0, ge=0)
    """For running requests to finish when serving stops or the engine is restarted; then they are cut off."""


class Tls(Settings):
    """HTTPS instead of HTTP. Read at the start: a renewed certificate needs a new start."""

    certificate: Path
    """PEM file with the certificate and those that signed it."""
    key: Path
    """PEM file with its private key, without a passphrase."""


class Price(Settings):
    """What 1,000 tokens cost."""

    prompt: float = Field(0.0, ge=0)
    """Of prompts."""
    completion: float = Field(0.0, ge=0)
    """Of answers."""


class Prices(Settings):
    """What use costs, for `llmops usage`; a change counts from the next start on."""

    currency: str = Field(pattern=r"^[A-Z]{3}$")
    """Such as EUR; amounts of two currencies are never added."""
    default: Price = Price()
    """For every model that is not named."""
    models: dict[str, Price] = Field(default_factory=dict)
    """By the name that is asked for."""

    def cost(self, model: str, n_prompt_tokens: int, n_completion_tokens: int) -> float:
        """The cost of one request.

        >>> Prices(currency="EUR", default=Price(prompt=0.5, completion=2.0)).cost("docs", 2000, 500)
        2.0
        """
        price = self.models.get(model, self.default)
        return (price.prompt * n_prompt_tokens + price.completion * n_completion_tokens) / 1000


class Tracing(Settings):
    """Where OpenTelemetry traces go; needs `pip install 'llmops[otel]'`."""

    endpoint: str = Field(pattern=r"^https?://")
    """Address that takes OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces."""
    sample_frac: float = Field(1.0, gt=0, le=1)
    """Share of traces that begin here and are kept; one that a client begun is kept if the client keeps it."""
    engine: bool = False
    """Have a vLLM child send its own spans there, too (`--otlp-traces-endpoint`)."""


class ResponseCacheSettings(Settings):
    """Which answers are kept for requests that come again."""

    tenants: Literal["all"] | tuple[str, ...] = "all"
    """Whose requests may be answered from it; nobody is ever given another tenant's answer."""
    max_bytes: int = Field(64 * 1024 * 1024, ge=64 * 1024)
    """Memory for answers; those that were not asked for the longest go first."""
    max_age_s: float = Field(3600.0, gt=0)
    """Seconds after which an answer is asked for anew."""


class ServeProfile(Settings):
    """Everything `llmops serve` needs to know."""

    base_model: str
    """As in a recipe: a folder, `pypi:NAME==VERSION/FILE.gguf`, or a hub id."""
    engine: Annotated[TransformersEngine | VllmEngine | HttpEngine, Field(discriminator="kind")]
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
    tracing: Tracing | None = None
    """Traces of requests; left out: none are made."""
    capture: CaptureSettings = CaptureSettings()
    """What is kept of prompts, answers and feedback, and how it is protected."""
    response_cache: ResponseCacheSettings | None = None
    """Answers to deterministic requests, kept in memory; left out: none are."""

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST_NAME.fullmatch(host):
                raise ValueError(
                    f"{host!r} is no host name; use small letters, without port, or *.example.com"
                )
        return hosts

    @model_validator(mode="after")
    def _plain_on_loopback_only(self) -> ServeProfile:
        if self.capture.encryption == "none" and not is_loopback(self.host):
            raise ValueError(
                f"capture.encryption: texts are kept in plain on a loopback address alone, not on {self.host}; leave "
                "it out and set LLMOPS_CAPTURE_KEY"
            )
        return self


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
    """What the engine is told for this profile on this machine, or was told by whoever runs it."""
    engine, tracing = profile.engine, profile.tracing
    device: str = engine.device
    if device == "auto":
        device = "cuda" if _NVIDIA_DEVICE.exists() else "cpu"
    spec = EngineSpec(
        kind="transformers",
        base_path=base.path,
        base_name=base.model_name,
        base_digest=base.digest,
        dtype=engine.dtype,
        device=device,
        max_model_tokens=profile.max_model_tokens,
        max_adapters=profile.slots,
        max_lora_rank=profile.max_lora_rank,
    )
    if isinstance(engine, HttpEngine):
        return replace(
            spec,
            kind=engine.engine,
            base_name=engine.served_as or base.model_name,
            quantization=engine.quantization,
            url=engine.url,
            replicas=engine.replicas or (engine.url,),
            adapters_at=engine.adapters_at,
            device_name=engine.device_name,
        )
    spec = replace(spec, max_num_seqs=engine.max_num_seqs, n_threads=engine.n_threads)
    if isinstance(engine, TransformersEngine):
        return spec
    return replace(
        spec,
        kind="vllm",
        quantization=engine.quantization,
        python=engine.python,
        kv_cache_gib=engine.kv_cache_gib,
        extra_args=vllm_arguments(engine, tracing.endpoint if tracing and tracing.engine else None),
    )
