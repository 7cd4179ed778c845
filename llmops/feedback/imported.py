"""Answers that were given in another tool as a campaign of their own: closed, for training, its raters kept apart.

Their names begin with the tool's, nobody else can rate under them, and no gate counts them: on which side an answer
stood, and whether a rater saw whose it was, is not known.
"""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llmops.data import asked_digest, gate_prompts
from llmops.db import writing
from llmops.errors import BadRequest
from llmops.feedback.brought import Brought, ImportFile, read_export
from llmops.feedback.open import require_free_name
from llmops.ratings.campaigns import close_campaign, open_campaign, put_items
from llmops.ratings.rows import Draft, last_number, require_answer, write_rating
from llmops.ratings.withdrawn import is_withdrawn
from llmops.records import Campaign, Dropped, Pins
from llmops.registry.adapters import Registry
from llmops.settings import load_yaml, now
from llmops.tables import showings

GATE_PROMPT = "gate prompt: stands in a gate pool of this workspace"


@dataclass(frozen=True)
class Imported:
    """The campaign, and how much came in."""

    campaign: Campaign
    n_ratings: int
    n_raters: int
    dropped: tuple[Dropped, ...]


def import_export(registry: Registry, file: Path, export: Path) -> Imported:
    """Open a campaign on what an export holds, with all its answers; all of it, or nothing.

    Raises:
        ConfigError: the YAML file does not say what it must.
        DataError: the export cannot be read.
        BadRequest: nothing in it can be used, an adapter is not known, or the campaign is still being rated.
        StoreError: the disk did not take it.
    """
    how = load_yaml(file, ImportFile)
    require_free_name(registry, how.name)
    for name in how.systems:
        registry.adapter(name)
    found = read_export(export, how)
    _leave_out_gate_prompts(registry, found)
    n_said = sum(len(said) for said in found.said.values())
    if not n_said:
        counts = Counter(lost.kind for lost in found.dropped)
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items())) or "it has no answers"
        raise BadRequest(f"{export}: nothing in it can be used ({why}); mend {file}")
    campaign = _campaign(registry, how, found)
    open_campaign(registry.store, registry.ledger, campaign)
    raters, lost = _write(registry, campaign, found)
    close_campaign(registry.ledger, campaign)
    return Imported(campaign, n_said - len(lost), len(raters), (*found.dropped, *lost))


def _campaign(registry: Registry, how: ImportFile, found: Brought) -> Campaign:
    models = [registry.adapter(name) for name in how.systems]
    return Campaign(
        name=how.name,
        purpose="train",
        question=how.question,
        systems=tuple(model.adapter for model in models),
        reports=None,
        dataset=None,
        base=models[0].base if models else "",
        prompt_contract=models[0].prompt_contract if models else "",
        engine=None,
        decoding={},
        items=put_items(registry.store, list(found.items.values()), found.dropped),
        n_items=len(found.items),
        n_dropped=dict(sorted(Counter(lost.kind for lost in found.dropped).items())),
        votes_per_item=1,
        created_at=now(),
        kind=how.kind,
        origin=how.format,
        licence=how.licence,
    )


def _leave_out_gate_prompts(registry: Registry, found: Brought) -> None:
    forbidden = gate_prompts(registry.store, registry.ledger)
    for digest, item in list(found.items.items()):
        if asked_digest(item.messages) in forbidden:
            del found.items[digest], found.said[digest]
            found.dropped.append(Dropped(item.source, GATE_PROMPT))


def _write(registry: Registry, campaign: Campaign, found: Brought) -> tuple[set[str], list[Dropped]]:
    """Write every answer with a showing of its own; a rater's later answer to an item supersedes the earlier."""
    digest, raters, lost = campaign.digest(), set[str](), list[Dropped]()
    with writing(registry.ledger.engine) as connection:
        number = last_number(connection)
        for item_digest, said in found.said.items():
            pins = Pins.of(campaign, found.items[item_digest]).digest
            before: dict[str, str] = {}
            for one in said:
                if is_withdrawn(connection, one.rater):
                    lost.append(
                        Dropped(f"{one.where} ({one.rater})", "withdrawn: the rater has withdrawn here")
                    )
                    continue
                require_answer(one.answer, campaign.kind)
                showing, at = secrets.token_hex(16), now()
                connection.execute(
                    showings.insert().values(
                        id=showing, campaign=digest, item=item_digest, rater=one.rater, left=0, at=at, first_at=None
                    )
                )  # fmt: skip
                number += 1
                draft = Draft(
                    digest, item_digest, one.rater, showing, 0, one.answer, at, pins, before.get(one.rater)
                )
                before[one.rater] = write_rating(connection, draft, number).digest
                raters.add(one.rater)
    return raters, lost
