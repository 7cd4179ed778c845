"""One engine from its start to its end: the child process, a client to it, and the signature its answers carry.

When the engine dies or is restarted, the session ends and a new one begins; nothing that was loaded or proved
carries over. Somebody else's engine may have replicas: adapters are loaded on each of them, and again on one that
comes back without (`Fleet.repair`).
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmops.engines.client import EngineClient
from llmops.engines.process import EngineProcess
from llmops.engines.remote import RemoteEngine, RunningEngine
from llmops.engines.spec import EngineSpec, signature
from llmops.errors import BadRequest, EngineFailed
from llmops.records import EngineSignature
from llmops.registry.bases import Base
from llmops.schema import digest_of
from llmops.serving.target import Target
from llmops.settings import Workspace

ENGINE_LOG = "engine.log"
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")

log = logging.getLogger("llmops.serving")


@dataclass(frozen=True)
class Session:
    """A running engine: one of ours, or the replicas of somebody else's."""

    process: RunningEngine
    clients: tuple[EngineClient, ...]
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
        return Target(self.spec.base_name, self.base.digest, self.base.contract, self.engine_digest)

    async def healthy(self) -> bool:
        """Whether the engine, or one of its replicas, says that it can serve."""
        return any(await asyncio.gather(*(client.healthy() for client in self.clients)))

    async def load_adapter(self, name: str, path: Path) -> tuple[EngineClient, ...]:
        """Load an adapter on every replica that can be reached and has it not; returns those that have it now.

        Raises:
            BadRequest, EngineFailed: one refused it, or none can be reached.
        """
        holders = tuple([client for client in self.clients if await self._loaded_on(client, name, path)])
        if not holders:
            raise EngineFailed(f"serving: no engine can be reached to load {name}; see the engine's log")
        return holders

    async def _loaded_on(self, client: EngineClient, name: str, path: Path) -> bool:
        if self.spec.url is None:
            await client.load_adapter(name, path)
            return True
        if not await client.healthy():
            log.warning("engine %s cannot be reached; %s is loaded there when it can", client.url, name)
            return False
        if name not in await client.models():  # a gateway before this one may have loaded it
            seen_as = self.spec.adapters_at / path.name if self.spec.adapters_at else None
            try:
                await client.load_adapter(name, path, seen_as)
            except BadRequest:
                if name not in await client.models():
                    raise
                log.info("engine %s: another gateway has just loaded %s", client.url, name)
        return True

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter's name everywhere.

        Raises:
            BadRequest, EngineFailed: see `EngineClient.unload_adapter`.
        """
        for client in self.clients:
            await client.unload_adapter(name)

    async def close(self, grace_s: float = 5.0) -> None:
        """Stop the engine, if it is ours."""
        for client in self.clients:
            await client.close()
        await self.process.stop(grace_s)


async def start_session(
    spec: EngineSpec, base: Base, workspace: Workspace, timeout_s: float, log_name: str = ENGINE_LOG
) -> Session:
    """Start an engine, or find somebody else's, and wait until it serves; `log_name` is its log in the workspace.

    Raises:
        EngineFailed: it ended, did not answer in time, or its replicas differ; nothing is left running.
        BadRequest: the spec asks for something the engine does not have.
    """
    process: RunningEngine
    if spec.url is None:
        log_path = workspace.logs / log_name
        process = EngineProcess(spec, log_path, workspace.root)
    else:
        process = RemoteEngine(spec)
    process.start()
    clients = tuple(EngineClient(url) for url in (spec.replicas or (process.url,)))
    try:
        await process.wait_ready(timeout_s)
        version = await _version(clients)
    except BaseException:
        for client in clients:
            await client.close()
        await process.stop(grace_s=1.0)
        raise
    device = spec.device_name or (device_name(spec.device) if spec.url is None else spec.device)
    return Session(process, clients, base, signature(spec, version, device))


async def _version(clients: tuple[EngineClient, ...]) -> str:
    """The version that all replicas which can be reached have."""
    found = {client.url: await client.version() for client in clients if await client.healthy()}
    versions = sorted(set(found.values()))
    if len(versions) != 1:
        raise EngineFailed(
            f"serving: replicas run different versions ({found}); run one, or give each its own serve"
        )
    return versions[0]


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
