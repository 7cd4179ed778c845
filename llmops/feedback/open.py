"""Opening a campaign: items frozen, the campaign's record stored, the ledger told. Here from reports, for a gate.

Answers are those the two reports were scored on: nothing is generated again. Whatever becomes no item is listed with
its reason beside the items. Sampled answers, for training, are `llmops.feedback.samples`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmops.engines.completions import load_answers
from llmops.errors import BadRequest, InvalidEvidence
from llmops.feedback.campaign_file import AnyCampaign, CaptureCampaign, GateCampaign, TypedCampaign
from llmops.feedback.extras import dress
from llmops.feedback.rubric import FILE as RUBRIC_FILE
from llmops.feedback.rubric import freeze_rubric, rubric_in
from llmops.ratings.added import BETWEEN, Owned, add_items
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import campaigns, is_closed, open_campaign, put_items
from llmops.records import (
    AdapterRecord,
    Campaign,
    Case,
    Completion,
    Dropped,
    EngineSignature,
    Item,
    Origin,
    Report,
    VotePlan,
)
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict, short
from llmops.settings import now

# What must be the same of both reports for their answers to differ by the models alone.
SHARED = ("suite_digest", "base", "engine", "session", "decoding", "cases", "n_cases")

Pair = tuple[Case, Completion, Completion]


@dataclass(frozen=True)
class Comparison:
    """What a gate's file comes to: the baseline, and the suite as it is now."""

    baseline: str  # digest
    suite: str
    suite_digest: str
    dataset: str | None  # DatasetSnapshot digest of the suite's cases; None for file cases
    plan: VotePlan | None = None  # what the gate asks of the votes


@dataclass(frozen=True)
class Answered:
    """Who answered, and how: what a campaign says of its items, whatever they were made from.

    `folder` is what paths in the campaign's file are relative to.
    """

    systems: tuple[str, ...]
    reports: tuple[str, str] | None
    dataset: str | None
    base: str
    prompt_contract: str
    engine: EngineSignature | None
    decoding: JsonDict
    plan: VotePlan | None = None
    folder: Path = Path()
    owners: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # of captured texts, by the item's digest


def open_from_reports(
    registry: Registry, file: GateCampaign, about: Comparison, adapter: str = "latest", folder: Path = Path()
) -> Campaign:
    """Open a campaign on the newest reports of a candidate and its baseline, made in one session.

    Raises:
        BadRequest: no such adapter, the campaign is still being rated, or no two answers differ.
        InvalidEvidence: there are no such reports, they are no evidence or do not belong together, or something of them
            was altered.
    """
    require_free_name(registry, file.name)
    candidate = registry.adapter(adapter)
    baseline = about.baseline
    reports = _reports(registry, about, candidate, baseline)
    ours, theirs = (load_answers(registry.store, report) for report in reports)
    _require_own(reports[0], [c for _, c in ours])
    _require_own(reports[1], [c for _, c in theirs])
    pairs = [(case, mine, other) for (case, mine), (_, other) in zip(ours, theirs, strict=True)]
    items, dropped = _items(sorted(pairs, key=lambda p: _rank(file.seed, p[0].digest)), file.n_items)
    answered = Answered(
        systems=(candidate.adapter, baseline),
        reports=(reports[0].digest(), reports[1].digest()),
        dataset=about.dataset,
        base=reports[0].base,
        prompt_contract=reports[0].prompt_contract,
        engine=reports[0].engine,
        decoding=reports[0].decoding,
        plan=about.plan,
        folder=folder,
    )
    return freeze(registry, file, answered, items, dropped)


def require_free_name(registry: Registry, name: str) -> None:
    """Refuse to put another campaign in the place of one that people are still rating.

    Raises:
        BadRequest: the newest campaign of that name is open and lacks votes.
    """
    named = [c for c in campaigns(registry.store, registry.ledger) if c.name == name]
    if not named or is_closed(registry.ledger, named[-1].digest()):
        return
    book = RatingBook(registry.store, registry.ledger, named[-1])
    if not book.settled():
        standing = book.standing()
        raise BadRequest(
            f"campaign {name}: is open, {standing.n_full} of {standing.n_items} items rated; end it with "
            f"`llmops feedback close {name}` first, or give the new one another name"
        )


def freeze(
    registry: Registry,
    file: AnyCampaign,
    answered: Answered,
    items: Sequence[Item],
    dropped: Sequence[Dropped],
) -> Campaign:
    """Store the items and open their campaign; those of captured answers lie in the database, not in the store.

    Raises:
        BadRequest: there are none, or scores are asked by a rubric without questions.
        ConfigError: the rubric beside the campaign's file does not say what it must.
        DataError: the campaign's gold file has a line that cannot be used.
        StoreError: the disk did not take it.
    """
    counts = dict(sorted(Counter(d.reason.partition(":")[0] for d in dropped).items()))
    if not items and not isinstance(file, TypedCampaign):
        raise _nothing_to_rate(file, counts, dropped)
    kind = "compare" if isinstance(file, GateCampaign) else file.kind
    dressed = dress(file, kind, items, answered.folder)
    origin = _origin(file)
    rubric = rubric_in(answered.folder)
    if kind == "rate" and not rubric.questions:
        raise BadRequest(
            f"campaign {file.name}: kind rate needs questions; add them to {RUBRIC_FILE} beside its file"
        )
    campaign = replace(
        _campaign(file, answered),
        items=put_items(registry.store, () if origin else dressed.items, dropped),
        n_items=dressed.n_counting,
        n_dropped=counts,
        rubric=freeze_rubric(registry.store, rubric),
        kind=kind,
        origin=origin,
        n_gold=dressed.n_gold,
        n_repeats=dressed.n_repeats,
        gold_every=dressed.gold_every,
    )
    if origin is not None:
        # First: a campaign that is open has its items.
        whose = [BETWEEN.join(answered.owners.get(i.repeat_of or i.digest, ())) for i in dressed.items]
        owned = [Owned(item, owner or None) for item, owner in zip(dressed.items, whose, strict=True)]
        add_items(registry.ledger, campaign, owned)
    open_campaign(registry.store, registry.ledger, campaign)
    return campaign


def _campaign(file: AnyCampaign, answered: Answered) -> Campaign:
    """What file and answers say of a campaign, without its items."""
    return Campaign(
        name=file.name,
        purpose=file.purpose,
        question=file.question,
        systems=answered.systems,
        reports=answered.reports,
        dataset=answered.dataset,
        base=answered.base,
        prompt_contract=answered.prompt_contract,
        engine=answered.engine,
        decoding=answered.decoding,
        items="",
        n_items=0,
        n_dropped={},
        votes_per_item=file.votes_per_item,
        created_at=now(),
        plan=answered.plan,
    )


def _nothing_to_rate(file: AnyCampaign, counts: Mapping[str, int], dropped: Sequence[Dropped]) -> BadRequest:
    why = ", ".join(f"{n} {reason}" for reason, n in counts.items()) or "no prompts"
    first = f"; first: {dropped[0].source}: {dropped[0].reason}" if dropped else ""
    return BadRequest(f"campaign {file.name}: nothing to rate ({why}{first}); change its models or prompts")


def _origin(file: AnyCampaign) -> Origin | None:
    return file.source if isinstance(file, TypedCampaign | CaptureCampaign) else None


def same_to_the_eye(first: str, second: str) -> bool:
    """Whether two answers look alike on the page, where space around a text is not seen."""
    return first.strip() == second.strip()


def _reports(
    registry: Registry, about: Comparison, candidate: AdapterRecord, baseline: str
) -> tuple[Report, Report]:
    """The candidate's and the baseline's report of the newest session that evaluated the candidate."""
    events = [e for e in registry.ledger.events("report.stored") if e.body["suite"] == about.suite]
    mine = [e for e in events if e.body["model"] == candidate.adapter]
    session = str(mine[-1].body["session"]) if mine else None
    theirs = [e for e in events if e.body["model"] == baseline and e.body["session"] == session]
    if not mine or not theirs:
        whose = f"{short(baseline)}, the baseline, in session {session}" if mine else candidate.model_name
        raise InvalidEvidence(
            f"feedback: no report of {whose} on suite {about.suite}; run `llmops eval` with {candidate.model_name}"
        )
    ours, other = (registry.store.get_record(Report, str(e.body["report"])) for e in (mine[-1], theirs[-1]))
    for report in (ours, other):
        if report.invalid:
            raise InvalidEvidence(
                f"report of {report.system}: is no evidence ({report.invalid[0]}); evaluate again"
            )
    differing = [name for name in SHARED if getattr(ours, name) != getattr(other, name)]
    if differing:
        raise InvalidEvidence(
            f"feedback: the reports of session {session} differ in {differing[0]}; evaluate again"
        )
    if ours.suite_digest != about.suite_digest:
        raise InvalidEvidence(
            f"suite {about.suite} is now {short(about.suite_digest)}, the reports answered {short(ours.suite_digest)}: "
            "its file or its data changed; run `llmops eval` again"
        )
    return ours, other


def _require_own(report: Report, completions: Sequence[Completion]) -> None:
    """Every answer must carry the digest of the model the report is about."""
    wrong = [c for c in completions if c.status == "answered" and c.answered_by != report.model]
    if wrong:
        by = short(wrong[0].answered_by or "a source that does not say")
        raise InvalidEvidence(
            f"report of {report.system}: {len(wrong)} answers came from {by}; evaluate again"
        )


def _items(pairs: Sequence[Pair], n_items: int | None) -> tuple[list[Item], list[Dropped]]:
    """Items in the given order, at most `n_items`; every other pair with its reason."""
    items: list[Item] = []
    dropped: list[Dropped] = []
    for case, ours, theirs in pairs:
        errored = next((c for c in (ours, theirs) if c.status == "errored"), None)
        if errored:
            dropped.append(Dropped(case.source, f"errored: {errored.system}: {errored.error}"))
        elif case.follow_ups or case.tools:
            dropped.append(Dropped(case.source, "not one text: has follow-ups or tools"))
        elif same_to_the_eye(ours.text, theirs.text):
            dropped.append(Dropped(case.source, "same answer"))
        elif len(items) == n_items:
            dropped.append(Dropped(case.source, f"over n_items: {n_items} others were drawn"))
        else:
            items.append(Item(case.messages, (ours.text, theirs.text), case.group, case.source))
    return items, dropped


def _rank(seed: int, digest: str) -> bytes:
    """Sorting by this is a random order that seed and content alone decide."""
    return hashlib.sha256(f"{seed}\0{digest}".encode()).digest()
