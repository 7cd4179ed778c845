from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from llmops.ratings.book import RatingBook
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.settings import find_workspace
from tests.loop import Loop
from tests.ratings.campaign import item, make_campaign
from tests.registry.chain import Chain, make_chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_adapter: Path) -> Chain:
    root = tmp_path_factory.mktemp("chain")
    (root / "llmops.yaml").write_text("name: chain\n")
    return make_chain(find_workspace(root), tiny_model, tiny_adapter)


@pytest.fixture
def loop(chain: Chain) -> Loop:
    root = chain.registry.store.root.parent.parent
    return Loop(root, root / "cache")


def test_rating_is_walked_to_the_release_of_what_learnt_from_it(loop: Loop, chain: Chain) -> None:
    out = loop.llmops("lineage", "rating:1").out
    head, up, down = (part.splitlines() for part in out.split("\n\n"))
    assert head[0].startswith(f"rating {short(chain.votes[0])} #1: of docs-train, rows.jsonl:")
    assert [line.split(" (")[0] for line in up] == [
        "made from",
        f"  campaign {short(chain.train)} docs-train: train, 3 items",
        f"    dataset {short(chain.dataset)} docs: 8 gate, 10 rate, 12 train rows",
        f"    adapter {short(chain.first)} docs: trained, rank 8",
        f"      base {short(chain.base)} {chain.registry.adapter(chain.first).base_ref}",
    ]
    assert [line.split(", 20")[0] for line in down] == [
        "used by",
        f"  preferences {short(chain.preferences)} docs-train: 2 pairs (made from",
        f"    adapter {short(chain.second)} docs: trained, rank 8 (trained on",
        f"      report {short(chain.second_report)} x@{short(chain.second)}: suite s, 1 cases (measures",
        f"        campaign {short(chain.gate)} docs-gate: gate, 2 items (pairs answers of",
        f"          2 ratings of campaign {short(chain.gate)} docs-gate: #5..#6 (about item of)",
        f"        decision {short(chain.early_decision)} docs: INCONCLUSIVE, gate g (decides on",
        f"        decision {short(chain.decision)} docs: PASS, gate g (decides on; counts votes of campaign "
        + short(chain.gate),
        f"          approval {short(chain.approval)} dana (approves",
        f"      release {short(chain.release)} docs: promote, activated (puts forward; stands on decision "
        f"{short(chain.decision)}; stands on approval {short(chain.approval)}",
        f"        name docs: champion {short(chain.second)} (stands for",
    ]


def test_release_is_walked_back_to_ratings_and_dataset_with_ratings_on_one_line(
    loop: Loop, chain: Chain
) -> None:
    out = loop.llmops("lineage", f"release:{chain.release[:8]}", "--up").out
    assert "used by" not in out
    assert f"2 ratings of campaign {short(chain.train)} docs-train: #1, #4 (made from)" in out
    assert f"dataset {short(chain.dataset)} docs: " in out
    full = loop.llmops("lineage", f"release:{chain.release[:8]}", "--up", "--full").out
    for number in (1, 4, 5):
        assert f"rating {short(chain.votes[number - 1])} #{number}: of docs-" in full
    assert short(chain.votes[1]) not in full  # superseded: nothing was learnt from it


def test_json_has_every_node_and_edge(loop: Loop, chain: Chain) -> None:
    found = json.loads(loop.llmops("lineage", "docs", "--json").out)
    assert found["schema"] == "llmops.lineage_graph/1"
    assert (found["node"]["kind"], found["node"]["id"], found["downstream"]) == ("name", "docs", [])
    kinds: dict[str, int] = {}
    for row in found["upstream"]:
        kinds[row["kind"]] = kinds.get(row["kind"], 0) + 1
    assert kinds == {
        "release": 1, "adapter": 2, "base": 1, "dataset": 1, "preferences": 1, "rating": 3, "campaign": 2,
        "decision": 1, "report": 2, "approval": 1,
    }  # fmt: skip
    shown = {row["id"] for row in found["upstream"]} | {"docs"}
    assert {end for edge in found["edges"] for end in (edge["source"], edge["target"])} == shown
    assert {"source": chain.second, "word": "continues", "target": chain.first} in found["edges"]
    only = json.loads(loop.llmops("lineage", "docs", "--json", "--down").out)
    assert "upstream" not in only


def test_what_cannot_be_found_is_a_bad_request(loop: Loop) -> None:
    unknown = loop.llmops("lineage", "rating:99", check=False)
    assert (unknown.code, unknown.out) == (2, "")
    assert unknown.err.startswith("error: lineage rating:99: nothing answers to it; give `latest`")
    several = loop.llmops("lineage", "docs-train", check=False)
    assert several.code == 2
    assert "2 things answer to it: campaign " in several.err


def test_broken_record_is_named_in_the_tree_and_an_edited_ledger_before_it(
    chain: Chain, tmp_path: Path
) -> None:
    shutil.copytree(chain.registry.store.root.parent, tmp_path / ".llmops")
    (tmp_path / "llmops.yaml").write_text("name: chain\n")
    loop = Loop(tmp_path, tmp_path / "cache")
    shutil.rmtree(tmp_path / ".llmops/store/decision_record" / chain.decision)
    with sqlite3.connect(tmp_path / ".llmops/llmops.db") as connection:
        connection.execute("UPDATE events SET at = '2001' WHERE seq = 1")
    done = loop.llmops("lineage", "docs")
    assert done.err == "warning: ledger: event 1 (dataset.snapshotted) was edited; restore the database\n"
    (line,) = (line for line in done.out.splitlines() if line.lstrip().startswith("decision "))
    assert line.split("  ")[-1].startswith(f"MISSING: store: decision_record {short(chain.decision)} is gone")
    assert f"adapter {short(chain.second)} docs" in done.out


def test_hundreds_of_ratings_are_one_line_with_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "llmops.yaml").write_text("name: many\n")
    workspace = find_workspace(tmp_path)
    registry = Registry.of(workspace)
    campaigns = [make_campaign(workspace, [item(i) for i in range(n)], name=f"c{n}") for n in (30, 6)]
    books = [RatingBook(registry.store, registry.ledger, campaign) for campaign in campaigns]
    for i in range(30):  # 6 of the second campaign between the first 12 of the first
        for book in books[: 2 if i < 6 else 1]:
            showing = book.next("ann")
            assert showing is not None
            book.rate(showing.id, "tie")
    loop = Loop(tmp_path, tmp_path / "cache")
    digests = [short(campaign.digest()) for campaign in campaigns]
    assert (
        f"\n  30 ratings of campaign {digests[0]} c30: between #1 and #36 (about item of)\n"
        in loop.llmops("lineage", "c30").out
    )
    assert (
        f"\n  6 ratings of campaign {digests[1]} c6: between #2 and #12 (about item of)\n"
        in loop.llmops("lineage", "c6").out
    )
    assert loop.llmops("lineage", "c30", "--full").out.count("(about item of, ") == 30


def test_workspace_without_events_says_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "llmops.yaml").write_text("name: empty\n")
    done = Loop(tmp_path, tmp_path / "cache").llmops("lineage", "latest", check=False)
    assert done.code == 2
    assert done.err.startswith("error: lineage latest: nothing answers to it")
