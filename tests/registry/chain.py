"""One whole round made by hand: rows, an adapter, its release, ratings, and the adapter that learnt from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from llmops.data import build_snapshot, load_pool
from llmops.feedback.export import export_preferences
from llmops.ledger import Event
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import open_campaign, put_items
from llmops.ratings.frozen import freeze_votes
from llmops.ratings.outcomes import live, outcome, votes_by_item
from llmops.records import AdapterRecord, Campaign, DatasetSnapshot, Decision, Item, Lineage, RatingEvidence
from llmops.registry.adapters import NewAdapter, Registry
from llmops.registry.approvals import approve
from llmops.registry.bases import Base, resolve_base
from llmops.registry.releases import request_promotion
from llmops.settings import Workspace, now
from tests.evidence import LINEAGE, NO_PROBES, activate, copy_with_other_weights, decide, engine_of

DATA = """\
name: docs
licence: CC0-1.0
origin: made up for a test
source: {kind: files, paths: [rows.jsonl]}
pools: {train: 0.4, rate: 0.3, gate: 0.3}
"""


@dataclass(frozen=True)
class Chain:
    """Digests of all that the round made; `votes` are the ratings by number from 1.

    #1 and #4 became pairs, #4 supersedes #2, #3 is a tie; #5 and #6 are about the gate's campaign, #6 is a skip.
    """

    registry: Registry
    base: str
    dataset: str
    first: str
    base_report: str
    first_report: str
    first_decision: str
    first_release: str
    train: str
    votes: tuple[str, ...]
    preferences: str
    second: str
    champion_report: str
    second_report: str
    early_decision: str
    gate: str
    decision: str
    approval: str
    release: str


@dataclass(frozen=True)
class _Models:
    registry: Registry
    base: Base

    def adapter(self, name: str, folder: Path, **changes: str | None) -> AdapterRecord:
        lineage: Lineage = replace(LINEAGE, **({"origin": "trained"} | changes))  # type: ignore[arg-type]
        new = NewAdapter(name, folder, self.base, self.base.contract, NO_PROBES, lineage, {})
        return self.registry.register(new)

    def campaign(self, name: str, items: list[Item], **changes: object) -> Campaign:
        campaign = Campaign(
            name=name, purpose="train", question="Which is better?", systems=("a" * 64, "a" * 64), reports=None,
            dataset=None, base=self.base.digest, prompt_contract=self.base.contract.digest(),
            engine=engine_of(self.base), decoding={}, items=put_items(self.registry.store, items), n_items=len(items),
            n_dropped={}, votes_per_item=1, created_at=now(),
        )  # fmt: skip
        campaign = replace(campaign, **changes)  # type: ignore[arg-type]
        open_campaign(self.registry.store, self.registry.ledger, campaign)
        return campaign


def make_chain(workspace: Workspace, model: Path, adapter: Path) -> Chain:
    """Walk the loop once, every step through the code that does it for users; no training, no engine."""
    registry = Registry.of(workspace)
    models = _Models(registry, resolve_base(str(model)))
    snapshot = _dataset(workspace, registry)
    first = models.adapter("docs", adapter, dataset=snapshot.digest())
    first_decision, _ = decide(registry, first, engine_of(models.base))
    first_release = _promote(registry, models.base)

    train, votes = _train_campaign(models, snapshot, first)
    preferences = export_preferences(registry, train)
    folder = copy_with_other_weights(adapter, workspace.root / "second", 0.5)
    second = models.adapter("docs", folder, preferences=preferences.digest(), continues=first.adapter)

    early, _ = decide(registry, second, engine_of(models.base), first.adapter, verdict="INCONCLUSIVE")
    gate, evidence, gate_votes = _gate_campaign(models, early, snapshot)
    decision = replace(early, verdict="PASS", ratings=evidence, n_approvals=1, created_at=now())
    body = {"public_name": "docs", "verdict": "PASS", "candidate": second.adapter}
    registry.ledger.append("decision.made", body | {"decision": registry.store.put_record(decision)})
    approval = approve(registry, "docs", "dana", None)
    release = _promote(registry, models.base)
    return Chain(
        registry=registry,
        base=models.base.digest,
        dataset=snapshot.digest(),
        first=first.adapter,
        first_report=first_decision.reports[0],
        base_report=first_decision.reports[1],
        first_decision=first_decision.digest(),
        first_release=first_release,
        train=train.digest(),
        votes=(*votes, *gate_votes),
        preferences=preferences.digest(),
        second=second.adapter,
        second_report=early.reports[0],
        champion_report=early.reports[1],
        early_decision=early.digest(),
        gate=gate.digest(),
        decision=decision.digest(),
        approval=approval.digest(),
        release=release,
    )


def _dataset(workspace: Workspace, registry: Registry) -> DatasetSnapshot:
    rows = [f'{{"prompt": "ask {i}", "completion": "say {i}", "group": "g{i}"}}\n' for i in range(30)]
    (workspace.root / "rows.jsonl").write_text("".join(rows))
    (workspace.root / "data.yaml").write_text(DATA)
    return build_snapshot(workspace.root / "data.yaml", registry.store, registry.ledger)


def _promote(registry: Registry, base: Base) -> str:
    event: Event = request_promotion(registry, "docs", engine_of(base))[0]
    activate(registry, event)
    return str(event.body["release"])


def _train_campaign(
    models: _Models, snapshot: DatasetSnapshot, adapter: AdapterRecord
) -> tuple[Campaign, list[str]]:
    rows = load_pool(models.registry.store, snapshot, "rate")[:3]
    items = [Item(row.messages[:-1], (f"a{i}", f"b{i}"), row.group, row.source) for i, row in enumerate(rows)]
    systems = (adapter.adapter, adapter.adapter)
    campaign = models.campaign("docs-train", items, systems=systems, dataset=snapshot.digest())
    book = RatingBook(models.registry.store, models.registry.ledger, campaign)
    showings = []
    for choice in ("left", "right", "tie"):
        showing = book.next("ann")
        assert showing is not None
        showings.append(showing.id)
        book.rate(showing.id, choice)
    book.rate(showings[1], "left")
    return campaign, [rating.digest for rating in book.ratings()]


def _gate_campaign(
    models: _Models, decision: Decision, snapshot: DatasetSnapshot
) -> tuple[Campaign, RatingEvidence, list[str]]:
    rows = load_pool(models.registry.store, snapshot, "gate")[:2]
    items = [Item(row.messages[:-1], ("better", "worse"), row.group, row.source) for row in rows]
    campaign = models.campaign(
        "docs-gate", items, purpose="gate", systems=(decision.candidate, decision.baseline), reports=decision.reports
    )  # fmt: skip
    book = RatingBook(models.registry.store, models.registry.ledger, campaign)
    for choice in ("tie", "skip"):
        showing = book.next("bob")
        assert showing is not None
        book.rate(showing.id, choice)
    rows_given = book.ratings()
    counts = Counter(outcome(votes) for votes in votes_by_item(rows_given).values())
    evidence = RatingEvidence(
        campaign.digest(), freeze_votes(models.registry.store, live(rows_given)), 2, 1, 1, 1, dict(counts)
    )
    return campaign, evidence, [rating.digest for rating in rows_given]
