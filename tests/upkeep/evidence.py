"""A workspace with genuine records: adapters, reports, a decision, a release, a campaign with ratings."""

from __future__ import annotations

from pathlib import Path

from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import open_campaign, put_items
from llmops.records import Campaign, Item, Message
from llmops.registry.adapters import NewAdapter, Registry
from llmops.registry.bases import resolve_base
from llmops.registry.releases import request_promotion
from llmops.settings import find_workspace, now
from tests.evidence import LINEAGE, NO_PROBES, activate, copy_with_other_weights, decide, engine_of
from tests.loop import Loop


def make_loop(folder: Path, tiny_model: Path, tiny_adapter: Path) -> Loop:
    """The workspace in `folder/ws`, with two adapters, one of them released, and three ratings."""
    root = folder / "ws"
    (root / "recipes").mkdir(parents=True)
    (root / "llmops.yaml").write_text("name: kept\n")
    (root / "recipes/docs.yaml").write_text("# llmops finetune recipes/docs.yaml\nname: docs\n")
    registry = Registry.of(find_workspace(root))
    base = resolve_base(str(tiny_model))
    extras = {"recipe.json": b"{}\n", "git.diff": b"+ line\n"}
    other = copy_with_other_weights(tiny_adapter, folder / "other", 0.5)
    for name, folder in (("docs", tiny_adapter), ("docs", other)):
        record = registry.register(NewAdapter(name, folder, base, base.contract, NO_PROBES, LINEAGE, extras))
    decide(registry, record, engine_of(base))
    activate(registry, request_promotion(registry, "docs", None)[0])
    rate(registry, engine_of(base), 3)
    return Loop(root, folder / "cache")


def rate(registry: Registry, engine: object, n: int) -> None:
    """Open a campaign of `n` items and rate each of them."""
    items = [Item((Message("user", f"q{i}"),), (f"a{i}", f"b{i}"), f"g{i}", f"f:{i}") for i in range(n)]
    campaign = Campaign(
        name="docs-train", purpose="train", question="Which?", systems=("a" * 64, "a" * 64), reports=None,
        dataset=None, base="b" * 64, prompt_contract="c" * 64, engine=engine,  # type: ignore[arg-type]
        decoding={}, items=put_items(registry.store, items), n_items=n, n_dropped={}, votes_per_item=1,
        created_at=now(),
    )  # fmt: skip
    open_campaign(registry.store, registry.ledger, campaign)
    book = RatingBook(registry.store, registry.ledger, campaign)
    while (showing := book.next("ann")) is not None:
        book.rate(showing.id, "left")
