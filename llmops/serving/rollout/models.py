"""The models of rollouts in the engine: loaded before they get traffic, unloaded after their last request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from llmops.errors import ReleaseRefused
from llmops.records import AdapterRecord, Rollout
from llmops.registry.adapters import Registry
from llmops.serving.engines import Engines
from llmops.serving.fleet import Weight
from llmops.serving.target import Target


class Models:
    """What rollouts have in the engine, and which of it is there for them alone."""

    def __init__(self, registry: Registry, keeper: Engines, weight: Weight) -> None:
        """Load through `keeper`; `weight` says what else needs a model."""
        self._registry = registry
        self._keeper = keeper
        self._weight = weight
        self._wanted: Counter[str] = Counter()  # being loaded, and how often
        self._own: set[str] = set()  # loaded for a rollout alone
        self._retiring: set[asyncio.Task[None]] = set()

    def wants(self, model: str) -> bool:
        """Whether a model (digest) is being loaded for a rollout, and must not make room for another."""
        return self._wanted[model] > 0

    async def load(self, rollout: Rollout) -> tuple[Target, ...]:
        """The targets of all arms, loaded and proved.

        Raises:
            LlmopsError: as `Keeper.load`.
        """
        models = [arm.model for arm in rollout.arms]
        self._wanted.update(models)
        try:
            return await self._each(rollout, lambda record: self._keeper.load(record, self._weight))
        finally:
            self._wanted.subtract(models)

    async def load_now(self, rollout: Rollout) -> tuple[Target, ...]:
        """As `load`, for a session that is being made: nobody else loads meanwhile, and no other one is begun."""
        return await self._each(rollout, lambda record: self._keeper.fleet.load(record, self._weight))

    def are_here(self, targets: tuple[Target, ...]) -> bool:
        """Whether these targets are those of the running session."""
        names = self._keeper.fleet.operator_names()
        return all(names.get(target.engine_name) == target for target in targets)

    def release(self, rollout: Rollout) -> None:
        """Unload what was loaded for a rollout that is over, once no request runs on it and nothing else needs it."""
        for arm in rollout.arms:
            if arm.model in self._own and not self._weight(arm.model):
                task = asyncio.create_task(self._keeper.retire(arm.model, self._weight))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
            self._own.discard(arm.model)

    async def _each(
        self, rollout: Rollout, load: Callable[[AdapterRecord], Awaitable[object]]
    ) -> tuple[Target, ...]:
        targets = []
        for arm in rollout.arms:
            base = self._keeper.fleet.session.base_target
            if arm.model == base.digest:
                targets.append(base)
                continue
            record = await asyncio.to_thread(self._registry.adapter, arm.model)
            was_there = self._keeper.fleet.get(arm.model) is not None
            await load(record)
            found = self._keeper.fleet.get(arm.model)
            if found is None:
                raise ReleaseRefused(
                    f"rollout {rollout.public_name}: {record.model_name} lost its slot; ask again"
                )
            if not was_there:
                self._own.add(arm.model)
            targets.append(found.target)
        return tuple(targets)
