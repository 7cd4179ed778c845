"""People's scores, exported as judged answers, train an adapter, and lineage leads from a rating to it."""

from __future__ import annotations

import pytest

from llmops.feedback.export import Export, export_rows
from llmops.ratings.rows import Answer
from llmops.ratings.withdrawn import withdraw
from llmops.records import Item, Message
from llmops.registry.adapters import Registry
from llmops.registry.graph import build_graph
from llmops.schema import short
from tests.ratings.campaign import book_of, make_campaign
from tests.train.support import PAIRS, Bench
from tests.train.test_data_sources import trained


@pytest.mark.walk
def test_peoples_scores_train_kto_and_lead_from_a_rating_to_the_adapter(bench: Bench) -> None:
    items = [
        Item((Message("user", prompt),), (text,), prompt, f"rows.jsonl:{n}")
        for n, (prompt, text) in enumerate([*PAIRS, *((p, "No.") for p, _ in PAIRS)])
    ]
    campaign = make_campaign(bench.workspace, items, kind="rate", name="scored")
    book = book_of(bench.workspace, campaign)
    while (showing := book.next("ann")) is not None:
        book.rate(showing.id, Answer("rated", scores={"good": 1 if showing.texts == ("No.",) else 5}))
    registry = Registry.of(bench.workspace)
    snapshot = export_rows(registry, campaign, Export("kto"))
    source = {"kind": "dataset", "name": "scored-kto"}
    output, lineage = trained(bench, data=source, method={"kind": "kto"}, seed=1)
    assert f"scored-kto@{short(snapshot.digest())}" in output
    assert lineage.dataset == snapshot.digest()
    adapter = registry.adapter("tiny-sft").adapter
    graph = build_graph(registry)
    reached = {step.node.id for step in graph.downstream(graph.find("rating:1"))}
    assert {snapshot.digest(), adapter} <= reached
    withdraw(registry.ledger, "ann")
    problem = build_graph(registry).nodes[adapter].problem or ""
    assert problem.startswith(f"WITHDRAWN: rests on {len(items)} ratings")
