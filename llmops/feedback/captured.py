"""Opening a train campaign on answers that were served: pairs of two models or arms, or single ones to rate or edit.

Texts lie in the database with their owner, so that whoever is forgotten takes theirs along; prompts of any gate pool
are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmops.data import asked_digest, gate_prompts
from llmops.errors import BadRequest, LlmopsError
from llmops.feedback.campaign_file import CaptureCampaign
from llmops.feedback.open import Answered, freeze, require_free_name, same_to_the_eye
from llmops.records import Campaign, Dropped, Item, Message
from llmops.registry.adapters import Registry

GATE_PROMPT = "gate prompt: stands in a gate pool of this workspace"


class Pair(Protocol):
    """Two answers that were served to one prompt."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was asked."""

    @property
    def tools(self) -> str | None:
        """Functions that could be called."""

    @property
    def answers(self) -> tuple[str, str]:
        """The texts."""

    @property
    def systems(self) -> tuple[str, str]:
        """Digests of what answered."""

    @property
    def responses(self) -> tuple[str, str]:
        """Ids of the responses."""

    @property
    def choices(self) -> tuple[int, int]:
        """Which answer of each response."""


@dataclass(frozen=True)
class Single:
    """One served answer."""

    messages: tuple[Message, ...]
    answer: str
    system: str
    response: str
    tools: str | None = None


@dataclass(frozen=True)
class Served:
    """What was found among the captures, newest first, and whose texts a response shows."""

    pairs: Iterable[Pair] = ()
    singles: Iterable[Single] = ()
    owners_of: Callable[[Sequence[str]], tuple[str, ...]] = lambda _responses: ()


def open_from_served(registry: Registry, file: CaptureCampaign, served: Served, folder: Path) -> Campaign:
    """Open a campaign on served answers.

    Raises:
        BadRequest: there is nothing to rate, or the campaign is still being rated.
        InvalidEvidence: a gate's data was altered.
        StoreError: the database did not take it.
    """
    require_free_name(registry, file.name)
    items, dropped = _items(file, served, gate_prompts(registry.store, registry.ledger))
    if not items:
        counts = ", ".join(sorted({d.reason.partition(":")[0] for d in dropped})) or "nothing fits its file"
        raise BadRequest(
            f"campaign {file.name}: nothing to rate ({counts}); set `capture.sample_frac` in the serving profile, or "
            "wait for more answers"
        )
    systems = tuple(dict.fromkeys(system for item in items for system in item.systems))
    base, contract = _made_with(registry, systems)
    answered = Answered(
        systems=systems,
        reports=None,
        dataset=None,
        base=base,
        prompt_contract=contract,
        engine=None,
        decoding={},
        folder=folder,
        owners={
            item.digest: served.owners_of([r.partition("#")[0] for r in item.responses]) for item in items
        },
    )
    return freeze(registry, file, answered, items, dropped)


def _items(file: CaptureCampaign, served: Served, forbidden: set[str]) -> tuple[list[Item], list[Dropped]]:
    items: dict[str, Item] = {}
    dropped: list[Dropped] = []
    for item, tools in _found(file, served):
        reason = _unusable(item, tools, forbidden)
        if reason is None and len(items) == file.n_items and item.digest not in items:
            reason = f"over n_items: {file.n_items} newer ones were taken"
        if reason is None:
            items.setdefault(item.digest, item)
        else:
            dropped.append(Dropped(item.source, reason))
    return list(items.values()), dropped


def _found(file: CaptureCampaign, served: Served) -> Iterable[tuple[Item, str | None]]:
    if file.kind == "compare":
        for pair in served.pairs:
            ids = tuple(
                f"{response}#{choice}" if choice else response
                for response, choice in zip(pair.responses, pair.choices, strict=True)
            )
            group = asked_digest(pair.messages)[:12]
            yield Item(pair.messages, pair.answers, group, ids[0], pair.systems, ids), pair.tools
        return
    for one in served.singles:
        group = asked_digest(one.messages)[:12]
        item = Item(one.messages, (one.answer,), group, one.response, (one.system,), (one.response,))
        yield item, one.tools


def _unusable(item: Item, tools: str | None, forbidden: set[str]) -> str | None:
    if asked_digest(item.messages) in forbidden:
        return GATE_PROMPT
    if tools is not None:
        return "not one text: has tools"
    if not all(answer.strip() for answer in item.answers):
        return "empty answer"
    if len(item.answers) == 2 and same_to_the_eye(*item.answers):
        return "same answer"
    return None


def _made_with(registry: Registry, systems: Sequence[str]) -> tuple[str, str]:
    """Base and prompt contract of the first system that is a registered adapter; of a base alone, the base."""
    for system in systems:
        try:
            record = registry.adapter(system)
        except LlmopsError:
            continue
        return record.base, record.prompt_contract
    return systems[0], ""
