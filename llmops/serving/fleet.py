"""The adapters in one engine session: loaded, listed, proved and warmed up before anything is routed to them; retired.

Slots are few. When one is needed, the adapter that matters least goes: first those no name stands for, oldest
first, then previous champions; champions never, and nothing while requests run on it. On engines whose slots
are never given back (vLLM on a CPU, see `EngineSpec.unload_frees_slot`) nothing is retired: `SlotsUsedUp`
asks for another engine session.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from llmops.chat import require_same_contract
from llmops.engines.client import EngineClient
from llmops.engines.proof import Proof, prove, rounding_nats
from llmops.engines.servability import require_servable
from llmops.errors import BadRequest, CouldNotRun, EngineFailed, InvalidEvidence, LlmopsError
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry, require_generating
from llmops.schema import short
from llmops.serving.routes import Side
from llmops.serving.session import Session
from llmops.serving.target import Target

BUSY_WAIT_S = 30.0
_BUSY_POLL_S = 0.05
WARM_UP_TOKENS = 8

log = logging.getLogger("llmops.serving")

Weight = Callable[[str], int]
"""How much an adapter (digest) matters: 0 nothing stands on it, 1 a previous champion, 2 a champion or a rollout."""


class SlotsUsedUp(LlmopsError):
    """This engine session can take no further adapter; a new one could."""


class ProofFailed(InvalidEvidence):
    """The engine does not compute what the trainer computed; carries the numbers."""

    def __init__(self, message: str, proof: Proof) -> None:
        """Keep the proof."""
        super().__init__(message)
        self.proof = proof


@dataclass(frozen=True)
class Loaded:
    """An adapter that is loaded and proved in this session."""

    record: AdapterRecord
    target: Target
    proof: Proof


class Fleet:
    """The adapters of one session. One change at a time: the caller holds the lock."""

    def __init__(self, session: Session, registry: Registry, side: Side) -> None:
        """Begin with the base alone."""
        self.session = session
        self._registry = registry
        self.side = side
        self._loaded: dict[str, Loaded] = {}
        self._n_used = 0  # slots taken since the engine started

    def get(self, digest: str) -> Loaded | None:
        """The loaded adapter with that digest."""
        return self._loaded.get(digest)

    @property
    def loaded(self) -> list[Loaded]:
        """What is loaded and proved, oldest first."""
        return list(self._loaded.values())

    def operator_names(self) -> dict[str, Target]:
        """The base and loaded adapters by immutable name."""
        base = self.session.base_target
        return {self.session.base.model_name: base} | {
            entry.record.model_name: entry.target for entry in self._loaded.values()
        }

    async def load(self, record: AdapterRecord, weight: Weight) -> Loaded:
        """Load and prove an adapter whose files were verified, and publish its operator name.

        Raises:
            InvalidEvidence: another base or prompt contract, or the proof failed (`ProofFailed`); nothing is routed.
            SlotsUsedUp: see above.
            BadRequest: a reward model, or a kind no engine serves (DoRA), its rank is too large, or champions hold all
                slots.
            EngineFailed: the engine refused it or is gone.
        """
        if (found := self._loaded.get(record.adapter)) is not None:
            return found
        contract = await asyncio.to_thread(self._registry.contract, record)
        self._require_fit(record)
        require_same_contract(contract, self.session.base.contract, f"adapter {record.model_name}")
        path = await asyncio.to_thread(self._registry.store.path, "adapter", record.adapter)
        require_servable(path, f"adapter {record.model_name}")
        await self._make_room(weight)
        self._n_used += 1
        holders = await self.session.load_adapter(record.model_name, path)
        target = Target(record.model_name, record.adapter, contract, self.session.engine_digest)
        entry = Loaded(record, target, await self._proved(record, holders))
        self._loaded[record.adapter] = entry
        self._publish()
        return entry

    async def retire(self, digest: str, weight: Weight) -> None:
        """Unload an adapter, unless something needs it (again) or a request runs on it."""
        entry = self._loaded.get(digest)
        if entry is None or weight(digest) or self.side.in_flight[digest]:
            return  # it goes when its slot is needed
        if self.session.spec.unload_frees_slot:
            await self._unload(entry)

    async def repair(self) -> None:
        """Load and prove again what a replica of somebody else's engine lost by a restart."""
        if self.session.spec.url is None:
            return
        for client in self.session.clients:
            try:
                there = set(await client.models())
                for entry in self.loaded:
                    if entry.record.model_name not in there:
                        await self._reload(entry, client)
            except LlmopsError as error:
                log.warning("engine %s: %s", client.url, error)

    async def _reload(self, entry: Loaded, client: EngineClient) -> None:
        record = entry.record
        path = await asyncio.to_thread(self._registry.store.path, "adapter", record.adapter)
        await self.session.load_adapter(record.model_name, path)
        await self._require_applied(record, client)
        log.info("adapter %s loaded and proved again on %s", record.model_name, client.url)

    async def _proved(self, record: AdapterRecord, holders: tuple[EngineClient, ...]) -> Proof:
        """The proof of the last of the replicas that hold it, after all gave theirs."""
        started = time.monotonic()
        try:
            for client in holders:
                proof = await self._require_applied(record, client)
            body = {"adapter": record.adapter, "engine": self.session.engine_digest}
            await asyncio.to_thread(self._registry.ledger.append, "adapter.proved", body)
        except Exception:
            await self._forget(record.model_name)
            raise
        log.info("adapter %s loaded and proved in %.2f s", record.model_name, time.monotonic() - started)
        return proof

    async def _require_applied(self, record: AdapterRecord, client: EngineClient) -> Proof:
        """The proof that one replica lists, applies and answers with an adapter."""
        if record.model_name not in await client.models():
            raise EngineFailed(
                f"adapter {record.model_name}: the engine took it and does not list it; see its log"
            )
        base, limit = self.session.spec.base_name, rounding_nats(self.session.signature)
        probes = await asyncio.to_thread(self._registry.probes, record)
        proof = await prove(client, base, record.model_name, probes, limit)
        if not proof.passed:
            raise ProofFailed(
                f"adapter {record.model_name} is not applied by the engine: {proof.reason}", proof
            )
        await client.warm_up(record.model_name, probes.token_ids[0][:WARM_UP_TOKENS])
        return proof

    def _require_fit(self, record: AdapterRecord) -> None:
        require_generating(record)
        base, spec = self.session.base, self.session.spec
        if record.base != base.digest:
            raise InvalidEvidence(
                f"adapter {record.model_name}: trained on base {short(record.base)}, but this engine "
                f"serves {short(base.digest)}; serve its own base"
            )
        if record.lora_rank > spec.max_lora_rank:
            raise BadRequest(
                f"adapter {record.model_name}: rank {record.lora_rank} is over max_lora_rank {spec.max_lora_rank}; "
                "raise it in the serving profile"
            )

    async def _make_room(self, weight: Weight) -> None:
        spec = self.session.spec
        if not spec.unload_frees_slot:
            if self._n_used >= spec.max_adapters:
                raise SlotsUsedUp(f"all {spec.max_adapters} adapter slots of this engine session are used up")
            return
        while len(self._loaded) >= spec.max_adapters:
            await self._unload(await self._idle_victim(weight))

    async def _unload(self, entry: Loaded) -> None:
        # No name may find it from here on; `await`s come after.
        del self._loaded[entry.record.adapter]
        self._publish()
        await self._forget(entry.record.model_name)
        log.info("adapter %s retired", entry.record.model_name)

    async def _idle_victim(self, weight: Weight) -> Loaded:
        deadline = time.monotonic() + BUSY_WAIT_S
        while True:
            ranked = sorted(self._loaded.values(), key=lambda entry: weight(entry.record.adapter))
            spare = [entry for entry in ranked if weight(entry.record.adapter) < 2]
            if not spare:
                raise BadRequest(
                    f"serving: all {len(ranked)} adapter slots hold champions and rollouts; raise `slots` in the "
                    "serving profile"
                )
            for entry in spare:
                if not self.side.in_flight[entry.target.digest]:
                    return entry
            if time.monotonic() > deadline:
                raise CouldNotRun(
                    f"serving: no adapter slot fell idle within {BUSY_WAIT_S:g} s; try again, or raise `slots`"
                )
            await asyncio.sleep(_BUSY_POLL_S)

    async def _forget(self, name: str) -> None:
        if self.session.spec.url is not None and self.side.engine_is_shared():
            return  # another gateway may be answering from it
        try:
            await self.session.unload_adapter(name)
        except (EngineFailed, BadRequest) as error:
            log.warning("adapter %s could not be unloaded: %s", name, error)

    def _publish(self) -> None:
        self.side.table = self.side.table.with_operator(self.operator_names())


def proof_fields(proof: Proof) -> dict[str, Any]:
    """The proof's fields as JSON values (not-a-number becomes null)."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(proof).items()}
