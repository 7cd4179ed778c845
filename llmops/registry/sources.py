"""What the lineage graph knows of each kind of thing: its label, what it was made from, and what is wrong with it.

One reader a kind, from ledger events and the thing's record. A record that cannot be read is no error here: the reader
says so, and tells what the events alone tell. Large files are looked for and not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from llmops.errors import InvalidEvidence
from llmops.ratings.campaigns import load_items
from llmops.ratings.frozen import VOTES_FILE
from llmops.ratings.origins import origins_of
from llmops.ratings.preferences import load_pairs
from llmops.records import (
    AdapterRecord,
    Approval,
    Campaign,
    DatasetSnapshot,
    Decision,
    JudgeCalibration,
    Lineage,
    PreferenceSnapshot,
    Release,
    Report,
    Rollout,
)
from llmops.registry.known import Events, Known, Link, Sources, at, model_link, said
from llmops.registry.nodes import Kind
from llmops.schema import short


def _base(sources: Sources, digest: str, _events: Events) -> Known:
    return Known(sources.base_refs.get(digest, "?"))


def _dataset(sources: Sources, digest: str, events: Events) -> Known:
    record, problem = sources.read(DatasetSnapshot, digest)
    if record is None:
        return Known(said(events, "name"), at=at(events), problem=problem)
    rows = ", ".join(f"{n} {pool}" for pool, n in record.n_rows.items())
    files = sources.files("dataset", record.artifact)
    campaigns = dict.fromkeys(str(e.body["campaign"]) for e in events if "campaign" in e.body)
    links: list[Link] = [("made from", "campaign", campaign) for campaign in campaigns]
    if links:
        try:
            behind = origins_of(sources.store, record.artifact)
            links += [("made from", "rating", r) for r in dict.fromkeys(r for row in behind for r in row)]
        except InvalidEvidence as error:
            files = sources.broken("dataset", record.artifact, error)
    return Known(record.name, f"{rows} rows", at(events), tuple(links), (record.artifact,), files)


def _adapter(sources: Sources, digest: str, events: Events) -> Known:
    """Every lineage that these weights were registered with: importing them again must not hide what they learnt."""
    if not events:
        return Known("?", problem="MISSING: is not registered in this workspace")
    label, links, parts = "", dict[Link, None](), list[str]()
    problem = sources.files("adapter", digest)
    for registered in dict.fromkeys(str(e.body["record"]) for e in events):
        record, broken = sources.read(AdapterRecord, registered)
        problem = problem or broken
        if record is None:
            continue
        sources.base_refs[record.base] = record.base_ref
        links["adapter of", "base", record.base] = None
        parts += [registered, record.lineage]
        lineage, broken = sources.read(Lineage, record.lineage)
        problem = problem or broken
        if lineage is not None:
            label = f"{lineage.origin}, rank {record.lora_rank}"
            links |= dict.fromkeys(_lineage_links(lineage))
    return Known(said(events[-1:], "name"), label, at(events), tuple(links), tuple(parts), problem)


def _lineage_links(lineage: Lineage) -> list[Link]:
    links: list[tuple[str, Kind, str | None]] = [
        ("trained on", "dataset", lineage.dataset),
        ("trained on", "preferences", lineage.preferences),
        ("continues", "adapter", lineage.continues),
    ]
    return [(word, kind, digest) for word, kind, digest in links if digest is not None]


def _report(sources: Sources, digest: str, events: Events) -> Known:
    record, problem = sources.read(Report, digest)
    if record is None:
        told = [model_link("measures", str(e.body["model"]), sources) for e in events[-1:]]
        return Known("?", f"suite {said(events, 'suite')}", at(events), tuple(told), (), problem)
    label = f"suite {record.suite}, {record.n_cases} cases{', INVALID' if record.invalid else ''}"
    links = (model_link("measures", record.model, sources, record.base),)
    files = sources.files("completions", record.completions)
    return Known(record.system, label, record.created_at, links, (record.completions,), files)


def _campaign(sources: Sources, digest: str, events: Events) -> Known:
    record, problem = sources.read(Campaign, digest)
    if record is None:
        return Known(said(events, "name"), "", at(events), (), (), problem)
    try:
        for item in load_items(sources.store, record):
            sources.asked_at[digest, item.digest] = item.source
    except InvalidEvidence as error:
        problem = sources.broken("items", record.items, error)
    word = "pairs answers of"
    links: list[Link] = [(word, "report", report) for report in record.reports or ()]
    links = links or [model_link(word, system, sources, record.base) for system in record.systems]
    if record.dataset is not None:
        links.append(("takes prompts from", "dataset", record.dataset))
    closed = ", closed" if any(e.kind == "campaign.closed" for e in events) else ""
    label = f"{record.purpose}, {record.n_items} items{closed}"
    return Known(record.name, label, record.created_at, tuple(links), (record.items,), problem)


def _rating(sources: Sources, digest: str, events: Events) -> Known:
    """The answer itself stays out: who reads along must not see a gate's votes before they are counted."""
    if not events:
        return Known("?", problem="MISSING: the ledger does not know it")
    body = events[-1].body
    number, campaign = body["number"], str(body["campaign"])
    label = f"of {sources.campaign_names.get(campaign, short(campaign))}"
    if asked := sources.asked_at.get((campaign, str(body["item"]))):
        label += f", {asked}"
    if digest in sources.superseded:
        label += f", superseded by #{sources.superseded[digest]}"
    row, problem = sources.rows.get(number), None
    if row is None:
        problem = f"MISSING: rating #{number} is not in the database"
    elif not row[0].digest == row[1] == digest:
        problem = f"CHANGED: rating #{number} is not what the ledger knows"
    return Known(f"#{number}", label, at(events), (("about item of", "campaign", campaign),), (), problem)


def _preferences(sources: Sources, digest: str, events: Events) -> Known:
    record, problem = sources.read(PreferenceSnapshot, digest)
    if record is None:
        told: list[Link] = [("made from", "campaign", str(e.body["campaign"])) for e in events[-1:]]
        return Known(said(events, "name"), "", at(events), tuple(told), (), problem)
    links: list[Link] = [("made from", "campaign", record.campaign)] if record.campaign else []
    if record.dataset is not None:
        links.append(("takes prompts from", "dataset", record.dataset))
    try:
        pairs = load_pairs(sources.store, record)
        links += [("made from", "rating", rating) for pair in pairs for rating in pair.ratings]
    except InvalidEvidence as error:
        problem = sources.broken("preferences", record.artifact, error)
    label = f"{record.n_pairs} pairs"
    return Known(record.name, label, record.created_at, tuple(links), (record.artifact,), problem)


def _decision(sources: Sources, digest: str, events: Events) -> Known:
    record, problem = sources.read(Decision, digest)
    if record is None:
        told: list[Link] = [("decides about", "adapter", str(e.body["candidate"])) for e in events[-1:]]
        name, verdict = said(events, "public_name"), said(events, "verdict")
        return Known(name, verdict, at(events), tuple(told), (), problem)
    links: list[Link] = [("decides on", "report", report) for report in record.reports]
    parts: list[str] = []
    # A judge's votes count as those a gate counts itself: it stands on them.
    for counted in (record.ratings, record.judge.ratings if record.judge else None):
        if counted is not None:
            parts.append(counted.votes)
            found, broken = _counts(sources, counted.campaign, counted.votes)
            links += [link for link in found if link not in links]
            problem = problem or broken
    label = f"{record.verdict}, gate {record.gate}"
    return Known(record.public_name, label, record.created_at, tuple(links), tuple(parts), problem)


def _counts(sources: Sources, campaign: str, votes: str) -> tuple[list[Link], str | None]:
    """The campaign and each rating behind frozen votes, and what is wrong with these."""
    links: list[Link] = [("counts votes of", "campaign", campaign)]
    try:
        lines = (sources.store.verify("votes", votes) / VOTES_FILE).read_bytes().splitlines()
    except InvalidEvidence as error:
        return links, sources.broken("votes", votes, error)
    return links + [("counts", "rating", str(json.loads(line)["rating"])) for line in lines], None


def _calibration(sources: Sources, digest: str, events: Events) -> Known:
    record, problem = sources.read(JudgeCalibration, digest)
    if record is None:
        told: list[Link] = [("counts votes of", "campaign", str(e.body["campaign"])) for e in events[-1:]]
        return Known(said(events, "judge"), "", at(events), tuple(told), (), problem)
    links, broken = _counts(sources, record.campaign, record.votes)
    label = f"of a judge, {record.n_rated} items, weight {record.weight:.2f}"
    return Known(
        said(events, "judge"), label, record.created_at, tuple(links), (record.votes,), problem or broken
    )


def _approval(sources: Sources, digest: str, events: Events) -> Known:
    record, problem = sources.read(Approval, digest)
    if record is None:
        told: list[Link] = [("approves", "decision", str(e.body["decision"])) for e in events[-1:]]
        return Known("?", "", at(events), tuple(told), (), problem)
    links: tuple[Link, ...] = (("approves", "decision", record.decision),)
    return Known(record.approver, "", record.created_at, links)


def _release(sources: Sources, digest: str, events: Events) -> Known:
    record, problem = sources.read(Release, digest)
    state = events[-1].kind.partition(".")[2] if events else "never requested"
    if record is None:
        told: list[Link] = [("puts forward", "adapter", str(e.body["adapter"])) for e in events[-1:]]
        return Known(said(events, "public_name"), state, at(events), tuple(told), (), problem)
    links: list[Link] = [("puts forward", "adapter", record.adapter)]
    if record.replaces is not None:
        links.append(("replaces", "adapter", record.replaces))
    if record.decision is not None:
        links.append(("stands on", "decision", record.decision))
    links += [("stands on", "approval", approval) for approval in record.approvals]
    return Known(record.public_name, f"{record.kind}, {state}", record.created_at, tuple(links))


def _rollout(sources: Sources, digest: str, events: Events) -> Known:
    record, problem = sources.read(Rollout, digest)
    state = events[-1].kind.partition(".")[2] if events else "never requested"
    if record is None:
        return Known(said(events, "public_name"), state, at(events), (), (), problem)
    links: list[Link] = [model_link("gives traffic to", arm.model, sources) for arm in record.arms]
    links.append(("beside", "adapter", record.champion))
    decisions = dict.fromkeys(arm.decision for arm in record.arms if arm.decision is not None)
    links += [("stands on", "decision", decision) for decision in decisions]
    return Known(record.public_name, f"{record.kind}, {state}", record.created_at, tuple(links))


READERS: dict[Kind, Callable[[Sources, str, Events], Known]] = {
    "base": _base,
    "dataset": _dataset,
    "adapter": _adapter,
    "report": _report,
    "campaign": _campaign,
    "rating": _rating,
    "preferences": _preferences,
    "calibration": _calibration,
    "decision": _decision,
    "approval": _approval,
    "release": _release,
    "rollout": _rollout,
}
"""Public names have none: they are folded from all events about them (`llmops.registry.graph`)."""
