"""Opening a train campaign: sampled answers to prompts of the rate pool, through the endpoint; or one of typed prompts.

To compare, two answers are sampled a prompt; to rate or edit, one.

The client is the one that evaluates: an answer that does not carry the digests of the model and engine that were asked
is never shown to anyone. Prompts of any gate pool are left out before anything is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmops.data import asked_digest, cases_of, find_snapshot, gate_prompts, load_pool, sample
from llmops.engines.endpoint import Endpoint, EndpointStatus, Patience, System, engine_digest
from llmops.engines.systems import load_adapters, system_of
from llmops.errors import BadRequest, CouldNotRun, InvalidEvidence
from llmops.feedback.campaign_file import TrainCampaign, TypedCampaign
from llmops.feedback.open import Answered, freeze, require_free_name, same_to_the_eye
from llmops.records import AdapterRecord, Campaign, Case, Completion, DatasetSnapshot, Dropped, Item
from llmops.registry.adapters import Registry
from llmops.registry.names import name_state
from llmops.schema import Progress, no_progress, short

POOL = "rate"
BASE = "base"
GATE_PROMPT = "gate prompt: stands in a gate pool of this workspace"
N_TRIES = 4  # the first, and three more with new seeds when both answers are the same
GIVE_UP_AFTER = 3  # questions in a row that no retry got answered: the endpoint is gone


@dataclass(frozen=True)
class SampleRequest:
    """Where answers are sampled, and how many prompts are under way at once."""

    endpoint: str
    concurrency: int = 16
    patience: Patience = field(default_factory=Patience)
    folder: Path = Path()
    """What paths in the campaign's file are relative to."""


@dataclass(frozen=True)
class _Sampled:
    """What came of the prompts: pairs in their order, the rest with reasons, and who answered on what."""

    items: tuple[Item, ...]
    dropped: tuple[Dropped, ...]
    systems: tuple[System, ...]
    status: EndpointStatus


def open_from_samples(
    registry: Registry, file: TrainCampaign, request: SampleRequest, progress: Progress = no_progress
) -> Campaign:
    """Sample the answers to each prompt and open a campaign on them.

    Raises:
        BadRequest: dataset or model do not exist or do not fit the endpoint, the campaign is still being rated, or no
            prompt got two different answers.
        InvalidEvidence: data or adapters were altered, or another model or engine answered.
        CouldNotRun: the endpoint does not answer, or went away.
    """
    require_free_name(registry, file.name)
    snapshot = find_snapshot(registry.store, registry.ledger, file.dataset)
    cases, dropped = _prompts(registry, snapshot, file)
    sampled = asyncio.run(_sample(file, _models(registry, file), cases, request, progress))
    answered = _answered(file, sampled.systems, sampled.status, request.folder)
    answered = replace(answered, dataset=snapshot.digest())
    return freeze(registry, file, answered, sampled.items, [*dropped, *sampled.dropped])


def open_for_typed(registry: Registry, file: TypedCampaign, request: SampleRequest) -> Campaign:
    """Open a campaign whose prompts raters type; its two models must be there, nothing is asked yet.

    Raises:
        BadRequest: a model does not exist or does not fit the endpoint, or the campaign is still being rated.
        InvalidEvidence: adapters were altered.
        CouldNotRun: the endpoint does not answer.
    """
    require_free_name(registry, file.name)
    models = _models(registry, file)
    systems, status = asyncio.run(_met(models, request))
    return freeze(registry, file, _answered(file, systems, status, request.folder), (), ())


async def _met(
    models: Sequence[AdapterRecord | None], request: SampleRequest
) -> tuple[tuple[System, ...], EndpointStatus]:
    async with Endpoint(request.endpoint, request.concurrency, request.patience) as endpoint:
        await load_adapters(endpoint, [record for record in models if record], no_progress)
        status = await endpoint.status()
    return tuple(system_of(record, status) if record else status.base for record in models), status


def _answered(
    file: TrainCampaign | TypedCampaign, systems: tuple[System, ...], status: EndpointStatus, folder: Path
) -> Answered:
    first, last = systems[0], systems[-1]
    return Answered(
        systems=(first.digest, last.digest) if file.kind == "compare" else (first.digest,),
        reports=None,
        dataset=None,
        base=status.base.digest,
        prompt_contract=first.prompt_contract,
        engine=status.engine,
        decoding=file.decoding.decoding(file.seed).model_dump(mode="json"),
        folder=folder,
    )


def _models(registry: Registry, file: TrainCampaign | TypedCampaign) -> list[AdapterRecord | None]:
    models = [_model(registry, name) for name in file.models]
    digests = [record.adapter if record else BASE for record in models]
    if len(set(digests)) != len(digests):
        raise BadRequest(
            f"campaign {file.name}: {' and '.join(file.models)} are one model; name it once to sample it twice"
        )
    return models


def _prompts(
    registry: Registry, snapshot: DatasetSnapshot, file: TrainCampaign
) -> tuple[list[Case], list[Dropped]]:
    """The pool's prompts in the order they are asked, and those that a gate decides on."""
    forbidden = gate_prompts(registry.store, registry.ledger)
    cases = sample(cases_of(load_pool(registry.store, snapshot, POOL)), None, file.seed)
    asked, lost = [], []
    for case in cases:
        if asked_digest(case.messages) in forbidden:
            lost.append(Dropped(case.source, GATE_PROMPT))
        else:
            asked.append(case)
    return asked, lost


def _model(registry: Registry, name: str) -> AdapterRecord | None:
    """The adapter that a model's name means, verified; None for the base."""
    if name == BASE:
        return None
    record = registry.adapter(name_state(registry, name).champion_adapter or name)
    registry.verify(record)
    return record


async def _sample(
    file: TrainCampaign,
    models: Sequence[AdapterRecord | None],
    cases: Sequence[Case],
    request: SampleRequest,
    progress: Progress,
) -> _Sampled:
    async with Endpoint(request.endpoint, request.concurrency, request.patience) as endpoint:
        await load_adapters(endpoint, [record for record in models if record], progress)
        before = await endpoint.status()
        systems = tuple(system_of(record, before) if record else before.base for record in models)
        sampler = _Sampler(endpoint, file, systems, engine_digest(before.engine))
        items, dropped = await sampler.run(cases, request.concurrency, progress)
        after = await endpoint.status()
    if (after.engine, after.base) != (before.engine, before.base):
        raise InvalidEvidence(
            f"endpoint {endpoint.url}: its engine changed meanwhile; open the campaign again"
        )
    return _Sampled(tuple(items), tuple(dropped), systems, before)


class _Errored(Exception):
    """A question that got no answer, with the reason."""


class _Sampler:
    """Two answers a prompt. The first is by `systems[0]`, the second by `systems[-1]`."""

    def __init__(
        self, endpoint: Endpoint, file: TrainCampaign, systems: tuple[System, ...], engine: str
    ) -> None:
        self._endpoint = endpoint
        self._file = file
        self._systems = (systems[0], systems[-1])
        self._engine = engine

    async def run(
        self, cases: Sequence[Case], n_at_once: int, progress: Progress
    ) -> tuple[list[Item], list[Dropped]]:
        """Ask until there are enough pairs or no more prompts; a prompt without a pair makes room for another."""
        items: list[Item] = []
        dropped: list[Dropped] = []
        wanted, waiting, slots = self._file.n_items, list(cases), asyncio.Semaphore(n_at_once)
        n_done = 0

        async def work(case: Case) -> Item | Dropped:
            nonlocal n_done
            async with slots:
                found = await self._pair(case)
            n_done += 1
            progress(n_done, len(batch) + len(items) + len(dropped), "prompts answered")
            return found

        while waiting and len(items) < wanted:
            batch, waiting = waiting[: wanted - len(items)], waiting[wanted - len(items) :]
            found = await asyncio.gather(*(work(case) for case in batch))
            items += [f for f in found if isinstance(f, Item)]
            dropped += [f for f in found if isinstance(f, Dropped)]
            if not items:
                break  # none of so many: the rest of the pool would not change that
        return items, dropped

    async def _pair(self, case: Case) -> Item | Dropped:
        """Two answers that differ, the second sampled again while they do not; or why there are none."""
        reason = ""
        try:
            first = await self._text(case, 0, 0)
            if self._file.kind != "compare":
                return await self._single(case, first)
            for attempt in range(N_TRIES):
                second = await self._text(case, 1, attempt)
                reason = _unusable(first, second)
                if not reason:
                    return Item(case.messages, (first, second), case.group, case.source)
                if not first.strip():
                    first = await self._text(case, 0, attempt + 1)
        except _Errored as error:
            reason = f"errored: {error}"
        return Dropped(case.source, reason)

    async def _single(self, case: Case, text: str) -> Item | Dropped:
        for attempt in range(1, N_TRIES):
            if text.strip():
                break
            text = await self._text(case, 0, attempt)
        if not text.strip():
            return Dropped(case.source, f"empty answer: in each of {N_TRIES} tries")
        return Item(case.messages, (text,), case.group, case.source)

    async def _text(self, case: Case, which: int, attempt: int) -> str:
        system = self._systems[which]
        decoding = self._file.decoding.decoding(_seed(self._file.seed, case.digest, which, attempt))
        completion = await self._endpoint.ask(system, case, decoding, self._engine)
        if self._endpoint.n_given_up >= GIVE_UP_AFTER:
            raise CouldNotRun(
                f"endpoint {self._endpoint.url}: no longer answers ({completion.error}); mend it, then run "
                "`llmops feedback open` again"
            )
        if completion.status == "errored":
            raise _Errored(f"{system.model}: {completion.error}")
        require_from(system, completion)
        return completion.text


def require_from(system: System, completion: Completion) -> None:
    """Refuse an answer that another model gave, or the right one under another prompt contract."""
    if completion.answered_by != system.digest:
        by = short(completion.answered_by or "") or "a source that does not say"
        raise InvalidEvidence(f"{system.model}: an answer came from {by}; mend the endpoint, then open again")
    if completion.prompt_contract != system.prompt_contract:
        raise InvalidEvidence(
            f"{system.model}: an answer was made under prompt contract {short(completion.prompt_contract or 'none')}, "
            f"not {short(system.prompt_contract)}; mend the endpoint, then open again"
        )


def _unusable(first: str, second: str) -> str:
    """Why two sampled answers are no pair; empty when they are one."""
    if not first.strip() or not second.strip():
        return f"empty answer: in each of {N_TRIES} tries"
    if same_to_the_eye(first, second):
        return f"same answer: in each of {N_TRIES} tries"
    return ""


def _seed(seed: int, case: str, which: int, attempt: int) -> int:
    """A request's seed, 0 to 2**31 - 1: its own for every prompt, side and attempt, and the same when run again."""
    text = f"{seed}\0{case}\0{which}\0{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1
