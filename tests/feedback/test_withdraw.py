"""A rater takes everything back: what rests on it is named, and nothing new is built on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmops.errors import BadRequest, InvalidEvidence, ReleaseRefused
from llmops.feedback.export import export_preferences
from llmops.ledger import Ledger
from llmops.ratings.check import verify_ratings
from llmops.ratings.preferences import find_preferences, load_pairs
from llmops.ratings.rows import Answer
from llmops.ratings.withdrawn import withdraw
from llmops.records import Campaign
from llmops.registry.adapters import Registry
from llmops.registry.release_checks import verify_release
from llmops.registry.releases import request_promotion
from llmops.schema import short
from llmops.settings import Workspace, find_workspace
from llmops.store import Store
from tests import in_process
from tests.feedback.test_export import build_data, dropped_of, open_train
from tests.ratings.campaign import book_of, item, make_campaign, vote
from tests.registry.chain import Chain, make_chain

pytestmark = pytest.mark.walk


@pytest.fixture
def chain(tmp_path: Path, tiny_model: Path, tiny_adapter: Path) -> Chain:
    (tmp_path / "llmops.yaml").write_text("name: chain\n")
    return make_chain(find_workspace(tmp_path), tiny_model, tiny_adapter)


def root_of(chain: Chain) -> Path:
    return chain.registry.store.root.parent.parent


def test_withdrawing_a_rater_names_all_that_learnt_from_them(chain: Chain) -> None:
    root = root_of(chain)
    assert "flagged" not in in_process.llmops(root, "status").out
    done = in_process.llmops(root, "feedback", "withdraw", "ann", "--reason", "asked to")
    assert done.code == 0, done.err
    assert "withdrawn ann: 4 ratings count no more" in done.out
    flagged = {line.split()[2]: line for line in done.out.splitlines() if line.startswith("flagged")}
    # Data, the adapter trained on it, its release, and the name that stands for it.
    assert set(flagged) == {short(d) for d in (chain.preferences, chain.second, chain.release)} | {"docs"}
    assert f"preferences {short(chain.preferences)} docs-train WITHDRAWN: rests on 2 ratings" in done.out
    status = in_process.llmops(root, "status")
    assert f"flagged    adapter {short(chain.second)} docs WITHDRAWN: rests on 2 ratings" in status.out
    told = json.loads(in_process.llmops(root, "status", "--json").out)
    assert len(told["withdrawn"]) == 4
    lineage = in_process.llmops(root, "lineage", "rating:1").out
    assert "#1: of docs-train" in lineage
    assert lineage.splitlines()[0].endswith("WITHDRAWN: its rater took it back")
    assert "rests on 2 ratings that were taken back" in lineage
    shown = in_process.llmops(root, "feedback", "show", "docs-train").out
    assert "flagged  4 ratings by 1 rater(s) who withdrew" in shown
    assert f"flagged  adapter {short(chain.second)}" in shown
    # What was never built on them stays clean.
    assert short(chain.first) not in done.out
    assert short(chain.decision) not in done.out


def test_nothing_new_is_trained_on_what_was_taken_back(chain: Chain) -> None:
    registry = chain.registry
    before = find_preferences(registry.store, registry.ledger, "docs-train")
    withdraw(registry.ledger, "ann")
    with pytest.raises(BadRequest, match="2 of 2 rows rest on ratings that were taken back"):
        find_preferences(registry.store, registry.ledger, "docs-train")
    campaign = registry.store.get_record(Campaign, chain.train)
    with pytest.raises(BadRequest, match=r"none of 3 items is a pair yet \(3 withdrawn\)"):
        export_preferences(registry, campaign)
    assert len(load_pairs(registry.store, before)) == 2  # what was learnt stays on record


def test_decision_whose_votes_were_taken_back_moves_no_name(chain: Chain) -> None:
    """The release that stands goes on serving; a promotion on the same decision is refused."""
    registry = chain.registry
    events = registry.ledger.events("release.requested")
    from llmops.records import Release

    standing = registry.store.get_record(Release, str(events[-1].body["release"]))
    done = in_process.llmops(root_of(chain), "feedback", "withdraw", "bob", "--json")
    told = json.loads(done.out)
    assert (told["n_ratings"], told["n_texts_deleted"]) == (2, 0)
    assert any(f"decision {short(chain.decision)}" in line for line in told["flagged"])
    assert any(line.startswith(f"approval {short(chain.approval)}") for line in told["flagged"])
    assert verify_release(registry, standing).adapter == chain.second
    from llmops.registry.releases import request_rollback
    from tests.evidence import activate

    activate(registry, request_rollback(registry, "docs", "drill")[0])
    with pytest.raises((InvalidEvidence, ReleaseRefused), match="1 of 1 votes behind decision"):
        request_promotion(registry, "docs", None)


def test_other_raters_votes_go_on_counting(workspace: Workspace) -> None:
    book = open_train(workspace, 3, votes_per_item=2)
    for rater, says, n in (("ann", "first", 3), ("ben", "second", 2)):
        for _ in range(n):
            vote(book, rater, says)
    registry = Registry.of(workspace)
    before = export_preferences(registry, book.campaign)
    assert (before.n_pairs, before.n_dropped) == (1, {"split": 2})
    withdraw(registry.ledger, "ann", "changed her mind")
    snapshot = export_preferences(registry, book.campaign)
    assert (snapshot.n_pairs, snapshot.n_dropped) == (2, {"withdrawn": 1})
    assert all(p.chosen.startswith("second") for p in load_pairs(registry.store, snapshot))
    folder = registry.store.verify("preferences", snapshot.artifact)
    left_out = [json.loads(line) for line in (folder / "left_out.jsonl").read_bytes().splitlines()]
    assert len(left_out) == 3
    assert {row["reason"] for row in left_out} == {"withdrawn: its rater took it back"}
    assert [d["reason"] for d in dropped_of(workspace, snapshot)] == [
        "withdrawn: all its raters took their answers back"
    ]
    # Her items are asked again, of others.
    assert book.standing().n_full == 0
    cid = [vote(book, "cid", "first") for _ in range(3)]
    assert len(set(cid)) == 3
    with pytest.raises(BadRequest, match="rater 'ann': has withdrawn"):
        book.next("ann")
    assert verify_ratings(Store.of(workspace), Ledger.of(workspace)) == 8


def test_texts_go_on_demand_and_the_chain_knows_that_they_went(workspace: Workspace) -> None:
    single = [replace(item(i), answers=(f"first {i}",)) for i in range(2)]
    campaign = make_campaign(workspace, single, kind="edit", dataset=build_data(workspace, 50))
    book = book_of(workspace, campaign)
    for _ in range(2):
        showing = book.next("ann")
        assert showing is not None
        book.rate(showing.id, Answer("edited", edit="better", note="ann@example.com"))
    assert in_process.llmops(workspace.root, "feedback", "withdraw", "nobody").code == 2
    first = in_process.llmops(workspace.root, "feedback", "withdraw", "ann")
    assert (first.code, len(book.texts())) == (0, 4)
    second = in_process.llmops(workspace.root, "feedback", "withdraw", "ann", "--delete-texts")
    assert "deleted   notes and corrections of 2 ratings" in second.out
    assert book.texts() == {}
    assert "ratings agree" in in_process.llmops(workspace.root, "ledger", "verify").out
    ledger = json.dumps([e.body for e in Ledger.of(workspace).events()])
    assert "ann" not in ledger
    withdrawn = Ledger.of(workspace).events("rater.withdrawn")
    assert [(len(e.body["ratings"]), len(e.body["texts_deleted"])) for e in withdrawn] == [(2, 0), (0, 2)]
