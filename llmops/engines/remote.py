"""An engine that somebody else starts and stops: one or several replicas of it behind one address.

Stands where `process.EngineProcess` does. Nothing here tells what the engine computes with; the profile does.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol

from llmops.engines.client import EngineClient
from llmops.engines.spec import EngineSpec
from llmops.errors import BadRequest, EngineFailed

ASK_EVERY_S = 0.5


class RunningEngine(Protocol):
    """What the gateway needs of an engine, its own child or somebody else's."""

    spec: EngineSpec

    @property
    def url(self) -> str:
        """Where completions are asked for."""
        ...

    @property
    def pid(self) -> int | None:
        """Process id of a child of this process."""
        ...

    @property
    def log_path(self) -> Path | None:
        """Where a child's output goes."""
        ...

    def start(self) -> None:
        """Start it, if that is ours to do."""
        ...

    def alive(self) -> bool:
        """Whether it runs, as far as can be seen without asking it."""
        ...

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when it serves the base; raises EngineFailed when it does not in time."""
        ...

    async def stop(self, grace_s: float = ...) -> None:
        """End it, if that is ours to do."""
        ...

    def last_words(self, when: str) -> str:
        """How it ended."""
        ...


class RemoteEngine:
    """Somebody else's engine at `spec.url`."""

    pid: int | None = None
    log_path: Path | None = None

    def __init__(self, spec: EngineSpec) -> None:
        """Name the engine; nothing is asked."""
        assert spec.url is not None
        self.spec = spec
        self.url = spec.url

    def start(self) -> None:
        """Nothing: it is somebody else's."""

    def alive(self) -> bool:
        """True: only asking it can tell."""
        return True

    def last_words(self, when: str) -> str:
        """One sentence; it left none here."""
        return f"serving: the engine at {self.url} is gone {when}; see its own log"

    async def stop(self, grace_s: float = 0.0) -> None:
        """Nothing: it is somebody else's."""

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when a replica serves the base with room for as many tokens as the profile says.

        Raises:
            EngineFailed: none does in time; says what was found last.
            BadRequest: one serves another base, or a shorter context.
        """
        deadline = time.monotonic() + timeout_s
        clients = [EngineClient(url) for url in self.spec.replicas]
        try:
            while True:
                found = await asyncio.gather(*(self._ready(client) for client in clients))
                if None in found:
                    return
                if time.monotonic() > deadline:
                    raise EngineFailed(f"serving: no engine answers within {timeout_s:g} s: {found[0]}")
                await asyncio.sleep(ASK_EVERY_S)
        finally:
            await asyncio.gather(*(client.close() for client in clients))

    async def _ready(self, client: EngineClient) -> str | None:
        """None when a replica can be used, else what keeps it from that."""
        if not await client.healthy():
            return f"{client.url} is not healthy"
        try:
            cards = await client.cards()
        except EngineFailed as error:
            return str(error)
        card = next((card for card in cards if card.get("id") == self.spec.base_name), None)
        if card is None:
            names = ", ".join(str(card.get("id")) for card in cards) or "nothing"
            raise BadRequest(
                f"engine {client.url}: serves {names}, not {self.spec.base_name}; start it with "
                f"--served-model-name {self.spec.base_name}, or set engine.served_as in the profile"
            )
        n_tokens = card.get("max_model_len")
        if isinstance(n_tokens, int) and n_tokens < self.spec.max_model_tokens:
            raise BadRequest(
                f"engine {client.url}: takes {n_tokens} tokens, the profile says {self.spec.max_model_tokens}; "
                "lower max_model_tokens, or start the engine with more"
            )
        return None
