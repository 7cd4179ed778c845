"""What an engine is told: the frozen description from which its command line, its signature and its limits
follow.

No process is started and no file is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmops.records import EngineSignature

EngineKind = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class EngineSpec:
    """One engine: which base it serves, on what, and how many adapters beside it.

    `base_name` is the served model name (`base@digest12`), `base_digest` the full digest it is short for.
    `max_adapters` counts the adapters that may be in use at once (see `unload_frees_slot`), `kv_cache_gib` is
    the size of the key-value cache on a CPU, `n_threads` the CPU threads (None: as many as there are cores).
    `python` names vLLM's interpreter when it lives in a venv of its own. `extra_args` go to the engine as
    they stand, last. `url` is set for an engine that somebody else runs: completions are asked there, and
    adapters loaded on each of `replicas`; `adapters_at` is where it sees the folder of all adapters, and
    `device_name` the full name of its device.
    """

    kind: EngineKind
    base_path: Path
    base_name: str
    base_digest: str
    dtype: str = "bfloat16"
    device: str = "cpu"
    quantization: str | None = None
    max_model_tokens: int = 2048
    max_adapters: int = 5
    max_lora_rank: int = 64
    max_num_seqs: int = 16
    chat_template: Path | None = None
    python: Path | None = None
    kv_cache_gib: int = 1
    n_threads: int | None = None
    extra_args: tuple[str, ...] = ()
    url: str | None = None
    replicas: tuple[str, ...] = ()
    adapters_at: Path | None = None
    device_name: str | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether the engine computes on the CPU."""
        return self.device == "cpu"

    @property
    def unload_frees_slot(self) -> bool:
        """Whether an unloaded adapter makes room for another.

        False for vLLM on a CPU: there, `max_adapters` bounds all adapters loaded since the engine started,
        and the engine has to be restarted before one more. Requests to the base that share a batch with an
        adapter's get the adapter in the *last* slot (vllm#48421), unloading forgets only the name, and slots
        fill in order; so the last one, which the command line adds for this, must stay empty for the engine's
        whole life.
        """
        return not (self.kind == "vllm" and self.on_cpu)


def signature(spec: EngineSpec, version: str, device: str | None = None) -> EngineSignature:
    """What about the engine can change an answer.

    Args:
        spec: what the engine was started with.
        version: what its `/version` answers.
        device: the device's full name ("NVIDIA H200"); default: the spec's.
    """
    return EngineSignature(
        engine=spec.kind,
        version=version,
        dtype=spec.dtype,
        quantization=spec.quantization,
        device=device or spec.device,
        base=spec.base_digest,
        max_model_tokens=spec.max_model_tokens,
    )
