"""A prompt that a rater typed, put to both models of a campaign at once; nothing is told before both answers are whole.

The client is the one that evaluates: an answer without the digests of the model and engine that were asked is an error.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable

from llmops.data import asked_digest, gate_prompts
from llmops.engines.decoding import Decoding
from llmops.engines.endpoint import Endpoint, EndpointStatus, Patience, System, engine_digest
from llmops.engines.systems import load_adapters, system_of
from llmops.errors import BadRequest, CouldNotRun, InvalidEvidence
from llmops.feedback.samples import require_from
from llmops.ratings.added import typed_item
from llmops.records import Campaign, Case, Item, Message
from llmops.registry.adapters import Registry
from llmops.schema import no_progress

MOST_AT_ONCE = 8
"""Prompts that are answered at one moment; whoever comes then is asked to try again: voting never waits for models."""
PATIENCE = Patience(answer_s=180.0, retry_s=15.0)
SOURCE = "typed on the rating page"


class Arms:
    """The two models of one campaign, behind an endpoint."""

    def __init__(self, registry: Registry, campaign: Campaign, find_endpoint: Callable[[], str]) -> None:
        """Nothing is asked yet; `find_endpoint` gives the endpoint's address, anew for each prompt."""
        self._registry = registry
        self._campaign = campaign
        self._find = find_endpoint
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)

    def answer(self, prompt: str) -> Item:
        """The prompt with both answers, in the order of the campaign's systems.

        Raises:
            BadRequest: the prompt is empty or stands in a gate pool, or nothing serves these models.
            CouldNotRun: the endpoint is busy, gone, or gave no whole answer.
            InvalidEvidence: another model or engine answered.
        """
        messages = (Message("user", prompt),)
        if not prompt.strip():
            raise BadRequest("prompt: is empty; type what both models shall answer")
        if asked_digest(messages) in gate_prompts(self._registry.store, self._registry.ledger):
            raise BadRequest("prompt: a gate of this workspace decides on it; ask something else")
        if not self._free.acquire(blocking=False):
            raise CouldNotRun("prompt: the models are busy with other raters' prompts; try again in a moment")
        try:
            first, second = asyncio.run(self._ask(Case(messages, (), SOURCE, SOURCE)))
        finally:
            self._free.release()
        return typed_item(prompt, (first, second), (self._campaign.systems[0], self._campaign.systems[-1]))

    async def _ask(self, case: Case) -> tuple[str, str]:
        decoding = Decoding(**{**self._campaign.decoding, "seed": secrets.randbelow(2**31)})
        async with Endpoint(self._find(), 2, PATIENCE) as endpoint:
            status = await endpoint.status()
            if status.engine != self._campaign.engine:
                raise InvalidEvidence(
                    f"endpoint {endpoint.url}: serves with another engine than campaign {self._campaign.name} was "
                    "opened on; open it again"
                )
            systems = await self._systems(endpoint, status)
            seeds = (decoding, decoding.model_copy(update={"seed": (decoding.seed + 1) % 2**31}))
            engine = engine_digest(status.engine)
            pairs = zip(systems, seeds, strict=True)
            found = await asyncio.gather(*(endpoint.ask(s, case, d, engine) for s, d in pairs))
        for system, completion in zip(systems, found, strict=True):
            if completion.status == "errored":
                raise CouldNotRun(f"prompt: a model gave no whole answer ({completion.error}); try again")
            require_from(system, completion)
        return found[0].text, found[1].text

    async def _systems(self, endpoint: Endpoint, status: EndpointStatus) -> tuple[System, System]:
        digests = (self._campaign.systems[0], self._campaign.systems[-1])
        records = [None if d == status.base.digest else self._registry.adapter(d) for d in digests]
        await load_adapters(
            endpoint, [r for i, r in enumerate(records) if r and r not in records[:i]], no_progress
        )
        first, second = (system_of(record, status) if record else status.base for record in records)
        return first, second
