"""Campaigns on served answers: captures and feedback read with their keys, and handed on as items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmops.records import Campaign
from llmops.registry.adapters import Registry
from llmops.registry.names import name_state

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from llmops.capture import Filter, Keyring
    from llmops.feedback.campaign_file import CaptureCampaign
    from llmops.feedback.captured import Single


def open_served(registry: Registry, file: CaptureCampaign, folder: Path) -> Campaign:
    """Open a campaign on what was captured here, or on what users said something of.

    Raises:
        BadRequest: there is nothing to rate, or the campaign is still being rated.
        ConfigError: texts were encrypted with a key that the environment does not have.
    """
    from llmops.capture import Filter, Keyring, captured_pairs
    from llmops.feedback.captured import Served, open_from_served

    engine, ring = registry.ledger.engine, Keyring.of_environment()
    wanted = Filter(asked=file.asked, since=file.since)
    if file.kind == "compare":
        served = Served(
            pairs=captured_pairs(engine, ring, wanted, _systems(registry, file.systems)),
            owners_of=lambda responses: _owners(engine, responses),
        )
    else:
        served = Served(
            singles=_singles(engine, ring, wanted, file),
            owners_of=lambda responses: _owners(engine, responses),
        )
    return open_from_served(registry, file, served, folder)


def _systems(registry: Registry, names: tuple[str, str] | None) -> tuple[str, str] | None:
    if names is None:
        return None
    first, second = (
        registry.adapter(name_state(registry, name).champion_adapter or name).adapter for name in names
    )
    return first, second


def _singles(engine: Engine, ring: Keyring, wanted: Filter, file: CaptureCampaign) -> Iterator[Single]:
    from llmops.capture import interactions
    from llmops.capture.pairs import MAX_INTERACTIONS, is_whole
    from llmops.feedback.captured import Single

    said = _said(engine, wanted, file) if file.source == "feedback" else None
    for one in interactions(engine, ring, wanted, MAX_INTERACTIONS):
        if one.problem is not None or not one.answers or not is_whole(one.answers[0]):
            continue
        if one.served.shadow_of is None and (said is None or one.response in said):
            yield Single(one.messages, one.answer, one.adapter, one.response, one.tools)


def _said(engine: Engine, wanted: Filter, file: CaptureCampaign) -> set[str]:
    """Ids of the responses that users called so; what they wrote is not read."""
    from llmops.capture import feedback_rows

    meant = {"bad": (False,), "good": (True,), "any": (True, False, None)}[file.said]
    return {
        row.served.response
        for row in feedback_rows(engine, None, wanted)
        if row.choice == 0 and row.good in meant
    }


def _owners(engine: Engine, responses: Sequence[str]) -> tuple[str, ...]:
    """The marks of the users who asked: a deletion of what is theirs takes these texts along."""
    from sqlalchemy import select

    from llmops.tables import responses as table

    with engine.connect() as connection:
        found = connection.execute(select(table.c.user).where(table.c.id.in_(list(responses)))).scalars()
        return tuple(sorted({str(mark) for mark in found if mark is not None}))
