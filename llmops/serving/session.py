"""One engine from its start to its end: the child process, a client to it, and the signature its answers carry.

When the engine dies or is restarted, the session ends and a new one begins; nothing that was loaded or proved
carries over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmops.engines.client import EngineClient
from llmops.engines.process import EngineProcess
from llmops.engines.spec import EngineSpec, signature
from llmops.records import EngineSignature
from llmops.registry.bases import Base
from llmops.schema import digest_of
from llmops.serving.target import Target
from llmops.settings import Workspace

ENGINE_LOG = "engine.log"
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Session:
    """A running engine."""

    process: EngineProcess
    client: EngineClient
    base: Base
    signature: EngineSignature

    @property
    def spec(self) -> EngineSpec:
        """What the engine was told."""
        return self.process.spec

    @cached_property
    def engine_digest(self) -> str:
        """Digest of the signature's fields, as in the header x-llmops-engine."""
        return digest_of(self.signature.to_pairs())

    @cached_property
    def base_target(self) -> Target:
        """The base model as something that answers."""
        return Target(self.base.model_name, self.base.digest, self.base.contract, self.engine_digest)

    async def close(self, grace_s: float = 5.0) -> None:
        """Stop the engine."""
        await self.client.close()
        await self.process.stop(grace_s)


async def start_session(spec: EngineSpec, base: Base, workspace: Workspace, timeout_s: float) -> Session:
    """Start an engine and wait until it serves.

    Raises:
        EngineFailed: it ended, or did not answer in time; nothing is left running.
        BadRequest: the spec asks for something the engine does not have.
    """
    process = EngineProcess(spec, workspace.logs / ENGINE_LOG, workspace.root)
    process.start()
    client = EngineClient(process.url)
    try:
        await process.wait_ready(timeout_s)
        version = await client.version()
    except BaseException:
        await client.close()
        await process.stop(grace_s=1.0)
        raise
    return Session(process, client, base, signature(spec, version, device_name(spec.device)))


def device_name(device: str) -> str:
    """The device's full name as the driver tells it ("NVIDIA H200", "2 x NVIDIA H200"), else its kind."""
    if device != "cuda":
        return device
    names = []
    for information in sorted(_NVIDIA_GPUS.glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", information.read_text(errors="replace"), re.MULTILINE)
        names.append(match[1].strip() if match else device)
    if not names:
        return device
    return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"
