from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from llmops.db import HEAD_REVISION
from llmops.errors import BadRequest, InvalidEvidence
from llmops.records import Lineage
from llmops.registry.adapters import Registry
from llmops.registry.approvals import approve
from llmops.registry.graph import build_graph
from llmops.registry.nodes import Edge, Graph, Node
from llmops.registry.releases import request_rollback
from llmops.settings import Workspace, find_workspace
from tests.evidence import activate
from tests.registry.chain import Chain, make_chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_adapter: Path) -> Chain:
    root = tmp_path_factory.mktemp("chain")
    (root / "llmops.yaml").write_text("name: chain\n")
    return make_chain(find_workspace(root), tiny_model, tiny_adapter)


@pytest.fixture
def own(chain: Chain, tmp_path: Path) -> Chain:
    """A copy of the chain's workspace, to break."""
    source = Path(chain.registry.store.root).parent
    shutil.copytree(source, tmp_path / ".llmops")
    (tmp_path / "llmops.yaml").write_text("name: chain\n")
    return replace(chain, registry=Registry.of(find_workspace(tmp_path)))


def _up(graph: Graph, node_id: str) -> set[str]:
    return {step.node.id for step in graph.upstream(graph.nodes[node_id])}


def _down(graph: Graph, node_id: str) -> set[str]:
    return {step.node.id for step in graph.downstream(graph.nodes[node_id])}


def test_upstream_of_every_kind_is_exactly_what_it_was_made_from(chain: Chain) -> None:
    c, graph = chain, build_graph(chain.registry)
    first = {c.first, c.dataset, c.base}
    train = {c.train} | first
    preferences = {c.preferences, c.votes[0], c.votes[3]} | train
    second = {c.second} | preferences
    reports = {c.second_report, c.champion_report} | second
    gate = {c.gate} | reports
    decision = {c.decision, c.votes[4]} | gate
    release = {c.release, c.approval} | decision
    expected = {
        c.base: set(),
        c.dataset: set(),
        c.first: first - {c.first},
        c.base_report: {c.base},
        c.first_report: first,
        c.first_decision: first | {c.base_report, c.first_report},
        c.first_release: first | {c.base_report, c.first_report, c.first_decision},
        c.train: first,
        **dict.fromkeys(c.votes[:4], train),
        c.preferences: preferences - {c.preferences},
        c.second: preferences,
        c.second_report: second,
        c.champion_report: first,
        c.early_decision: reports,
        c.gate: reports,
        **dict.fromkeys(c.votes[4:], gate),
        c.decision: decision - {c.decision},
        c.approval: decision,
        c.release: release - {c.release},
        "docs": release,
    }
    assert {node_id: _up(graph, node_id) for node_id in graph.nodes} == expected
    assert graph.problems == ()
    assert [node.problem for node in graph.nodes.values() if node.problem] == []


def test_downstream_is_the_same_edges_walked_the_other_way(chain: Chain) -> None:
    graph = build_graph(chain.registry)
    behind = {node_id: _up(graph, node_id) for node_id in graph.nodes}
    assert {node_id: _down(graph, node_id) for node_id in graph.nodes} == {
        node_id: {other for other in graph.nodes if node_id in behind[other]} for node_id in graph.nodes
    }


def test_a_rating_leads_to_the_adapter_that_learnt_from_it_and_to_its_release(chain: Chain) -> None:
    c, graph = chain, build_graph(chain.registry)
    beyond = {
        c.second_report,
        c.early_decision,
        c.gate,
        *c.votes[4:],
        c.decision,
        c.approval,
        c.release,
        "docs",
    }
    assert _down(graph, c.votes[0]) == {c.preferences, c.second} | beyond
    # What was answered anew, a tie, and a skip taught and decided nothing.
    assert _down(graph, c.votes[1]) == _down(graph, c.votes[2]) == _down(graph, c.votes[5]) == set()
    assert _down(graph, c.votes[4]) == {c.decision, c.approval, c.release, "docs"}


def test_edges_say_how_things_hang_together(chain: Chain) -> None:
    c, graph = chain, build_graph(chain.registry)

    def edges(node_id: str) -> set[tuple[str, str]]:
        return {(e.word, e.target) for e in graph.edges_from(graph.nodes[node_id])}

    assert edges(c.second) == {
        ("adapter of", c.base), ("trained on", c.preferences), ("continues", c.first),
    }  # fmt: skip
    assert edges(c.preferences) == {
        ("made from", c.train), ("made from", c.votes[0]), ("made from", c.votes[3]), ("takes prompts from", c.dataset),
    }  # fmt: skip
    assert edges(c.train) == {("pairs answers of", c.first), ("takes prompts from", c.dataset)}
    assert edges(c.gate) == {("pairs answers of", c.second_report), ("pairs answers of", c.champion_report)}
    assert edges(c.decision) == {
        ("decides on", c.second_report), ("decides on", c.champion_report), ("counts votes of", c.gate),
        ("counts", c.votes[4]),
    }  # fmt: skip
    assert edges(c.release) == {
        ("puts forward", c.second), ("replaces", c.first), ("stands on", c.decision), ("stands on", c.approval),
    }  # fmt: skip
    assert edges("docs") == {("stands for", c.release)}


def test_walk_tells_each_node_once_at_its_shortest_distance_with_what_lies_behind_it_next(
    chain: Chain,
) -> None:
    c, graph = chain, build_graph(chain.registry)
    told = [(step.node.id, step.depth) for step in graph.upstream(graph.nodes[c.second])]
    assert told == [
        (c.base, 1), (c.first, 1), (c.dataset, 2), (c.preferences, 1), (c.train, 2), (c.votes[0], 2), (c.votes[3], 2),
    ]  # fmt: skip
    assert graph.upstream(graph.nodes[c.second]) == build_graph(c.registry).upstream(graph.nodes[c.second])


def test_labels_tell_numbers_and_prompts_but_never_who_rated_or_what(chain: Chain) -> None:
    c, graph = chain, build_graph(chain.registry)
    rating = graph.nodes[c.votes[1]]
    assert rating.name == "#2"
    assert rating.label.startswith("of docs-train, rows.jsonl:")
    assert rating.label.endswith(", superseded by #4")
    texts = json.dumps([[n.name, n.label] for n in graph.nodes.values() if n.kind == "rating"])
    assert not any(word in texts for word in ("ann", "bob", "left", "right", "tie", "skip"))
    assert graph.nodes[c.dataset].name == "docs"
    assert graph.nodes[c.approval].name == "dana"
    assert graph.nodes[c.release].label == "promote, activated"
    assert graph.nodes[c.base_report].label == "suite s, 1 cases"


# ---------------------------------------------------------------- references


def test_every_form_of_reference_finds_its_node(chain: Chain) -> None:
    c, graph = chain, build_graph(chain.registry)
    for node_id in graph.nodes.keys() - {"docs"}:
        assert graph.find(node_id[:16]).id == node_id
        assert graph.find(f"{graph.nodes[node_id].kind}:{node_id[:16]}").id == node_id
    snapshot = c.registry.ledger.events("dataset.snapshotted")[0].body["artifact"]
    forms = {
        "latest": c.second, f"docs@{c.first[:12]}": c.first, "adapter:docs": c.second, "docs": "docs",
        "name:docs": "docs",
        "#4": c.votes[3], "rating:4": c.votes[3], "rating:latest": c.votes[5], f"base@{c.base[:12]}": c.base,
        "campaign:docs-train": c.train, "preferences:docs-train": c.preferences, "docs-gate": c.gate,
        "decision:docs": c.decision, "release:docs": c.release, "approval:latest": c.approval,
        "dataset:docs": c.dataset, str(snapshot)[:12]: c.dataset,
    }  # fmt: skip
    assert {form: graph.find(form).id for form in forms} == forms


def test_reference_that_more_than_one_thing_answers_to_lists_them(chain: Chain) -> None:
    c, graph = chain, build_graph(chain.registry)
    with pytest.raises(BadRequest) as caught:
        graph.find("docs-train")
    assert str(caught.value) == (
        f"lineage docs-train: 2 things answer to it: campaign {c.train[:12]} docs-train, "
        f"preferences {c.preferences[:12]} docs-train; give more digits, or KIND: before it"
    )
    close = Graph([Node("adapter", "abcdef1", "a", "", None), Node("report", "abcdef2", "b", "", None)], [])
    with pytest.raises(BadRequest, match="2 things answer to it: adapter abcdef1 a, report abcdef2 b;"):
        close.find("abcdef")
    assert close.find("abcdef2").name == close.find("report:abcdef").name == "b"


@pytest.mark.parametrize(
    "wrong", ["", "abcde", "nobody", "rating:99", "#0", "docs@000000000000", "gate:docs", "base:docs", ":"]
)
def test_reference_that_nothing_answers_to_says_what_is_accepted(chain: Chain, wrong: str) -> None:
    with pytest.raises(
        BadRequest, match=r"nothing answers to it; give `latest`, a public name, .*rating:NUMBER"
    ):
        build_graph(chain.registry).find(wrong)


def test_cycle_ends_where_it_began() -> None:
    nodes = [Node("adapter", digit * 8, digit, "", None) for digit in "123"]
    ids = [node.id for node in nodes]
    edges = [Edge(a, "continues", b) for a, b in ((ids[0], ids[1]), (ids[1], ids[2]), (ids[2], ids[0]))]
    graph = Graph(nodes, edges)
    assert [(s.node.id, s.depth) for s in graph.upstream(nodes[0])] == [(ids[1], 1), (ids[2], 2)]
    assert [(s.node.id, s.depth) for s in graph.downstream(nodes[0])] == [(ids[2], 1), (ids[1], 2)]


# ---------------------------------------------------------------- what is broken


def _record(chain: Chain, kind: str, digest: str) -> Path:
    path = chain.registry.store.root / f"{kind}_record" / digest / "record.json"
    path.chmod(0o644)
    return path


def test_changed_record_is_shown_and_what_events_tell_remains(own: Chain) -> None:
    path = _record(own, "decision", own.decision)
    path.write_text(path.read_text().replace('"PASS"', '"FAIL"'))
    graph = build_graph(own.registry)
    node = graph.nodes[own.decision]
    assert node.problem is not None
    assert node.problem.startswith(f"CHANGED: store: decision_record {own.decision[:12]} was changed")
    assert _up(graph, own.decision) == {own.second} | _up(graph, own.second)
    assert own.decision in _up(graph, own.release) & _up(graph, "docs")
    assert {i for i, n in graph.nodes.items() if n.problem} == {own.decision}


@pytest.mark.parametrize("text", ["", "[]", "null", '"text"', "{}", "{", '{"schema": 7}'])
def test_record_that_became_anything_else_is_changed(own: Chain, text: str) -> None:
    _record(own, "lineage", own.registry.adapter(own.second).lineage).write_text(text)
    graph = build_graph(own.registry)
    assert str(graph.nodes[own.second].problem).startswith("CHANGED: ")
    assert _up(graph, own.second) == {own.base}
    assert own.release in _down(graph, own.second)


def test_missing_preferences_leave_the_adapter_and_the_campaign_readable(own: Chain) -> None:
    shutil.rmtree(_record(own, "preferences", own.preferences).parent)
    graph = build_graph(own.registry)
    assert str(graph.nodes[own.preferences].problem).startswith("MISSING: store: preferences_record")
    assert _up(graph, own.second) == {own.base, own.first, own.dataset, own.preferences, own.train}
    assert _down(graph, own.votes[0]) == set()


def test_changed_pairs_and_votes_name_no_ratings(own: Chain) -> None:
    (pairs,) = own.registry.store.root.glob("preferences/*/pairs.jsonl")
    (votes,) = own.registry.store.root.glob("votes/*/votes.jsonl")
    for path in (pairs, votes):
        path.chmod(0o644)
        path.write_text(path.read_text() + "\n")
    graph = build_graph(own.registry)
    for node_id in (own.preferences, own.decision):
        assert str(graph.nodes[node_id].problem).startswith("CHANGED: store: ")
    assert _down(graph, own.votes[0]) == _down(graph, own.votes[4]) == set()
    assert own.train in _up(graph, own.preferences)
    assert own.gate in _up(graph, own.decision)


def test_missing_release_takes_the_champion_away_and_nothing_else(own: Chain) -> None:
    shutil.rmtree(_record(own, "release", own.release).parent)
    graph = build_graph(own.registry)
    name = graph.nodes["docs"]
    assert (name.label, str(name.problem)[:11]) == ("its champion cannot be told", "UNREADABLE:")
    assert {e.word for e in graph.edges_from(name)} == {"last moved by"}
    assert _up(graph, own.release) == {own.second} | _up(graph, own.second)


def test_record_of_another_version_is_unreadable_not_changed(own: Chain) -> None:
    class Newer(Lineage):
        schema = "llmops.lineage/99"

    record = own.registry.adapter(own.second)
    lineage = Newer(**own.registry.lineage(record).__dict__)
    body = {
        "adapter": own.second, "name": "docs",
        "record": own.registry.store.put_record(replace(record, lineage=own.registry.store.put_record(lineage))),
    }  # fmt: skip
    own.registry.ledger.append("adapter.registered", body)
    node = build_graph(own.registry).nodes[own.second]
    assert str(node.problem).startswith("UNREADABLE: ")
    assert "llmops.lineage/99" in str(node.problem)


def test_adapter_whose_files_are_gone_is_missing_and_keeps_its_history(own: Chain) -> None:
    shutil.rmtree(own.registry.store.path("adapter", own.second))
    graph = build_graph(own.registry)
    assert graph.nodes[own.second].problem == f"MISSING: adapter {own.second[:12]} is not in the store"
    assert own.preferences in _up(graph, own.second)


def _sql(chain: Chain, statement: str) -> None:
    with sqlite3.connect(chain.registry.store.root.parent / "llmops.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD_REVISION,)
        connection.execute(statement)


def test_rating_rows_that_were_touched_are_marked(own: Chain) -> None:
    _sql(own, "UPDATE ratings SET choice = 'right' WHERE number = 1")
    _sql(own, "DELETE FROM ratings WHERE number = 4")
    graph = build_graph(own.registry)
    assert graph.nodes[own.votes[0]].problem == "CHANGED: rating #1 is not what the ledger knows"
    assert graph.nodes[own.votes[3]].problem == "MISSING: rating #4 is not in the database"
    assert own.preferences in _down(graph, own.votes[0]) & _down(graph, own.votes[3])


def test_edited_ledger_is_said_and_its_broken_events_are_passed_over(own: Chain) -> None:
    _sql(own, "UPDATE events SET body = '{}' WHERE kind = 'preferences.snapshotted'")
    graph = build_graph(own.registry)
    assert len(graph.problems) == 1
    assert "(preferences.snapshotted) was edited" in graph.problems[0]
    assert own.votes[0] in _up(graph, own.second)  # the adapter's own lineage still leads there


@pytest.mark.parametrize("body", ["{", "[]", "null"])
def test_event_that_cannot_be_read_is_named(own: Chain, body: str) -> None:
    _sql(own, f"UPDATE events SET body = '{body}' WHERE seq = 2")
    with pytest.raises(InvalidEvidence, match=r"event 2 \(adapter.registered\) was edited"):
        build_graph(own.registry)


def test_rollback_leaves_the_name_with_its_older_release_and_says_who_moved_it(own: Chain) -> None:
    event, _ = request_rollback(own.registry, "docs", "worse in production")
    waiting = build_graph(own.registry)
    words = {(e.word, e.target) for e in waiting.edges_from(waiting.nodes["docs"])}
    assert words == {("stands for", own.release), ("waits for", str(event.body["release"]))}
    activate(own.registry, event)
    graph = build_graph(own.registry)
    words = {(e.word, e.target) for e in graph.edges_from(graph.nodes["docs"])}
    assert words == {("stands for", own.first_release), ("last moved by", str(event.body["release"]))}


def test_second_approval_joins_the_first(own: Chain) -> None:
    late = approve(own.registry, "docs", "erin", None).digest()
    graph = build_graph(own.registry)
    assert _down(graph, late) == set()
    assert {e.target for e in graph.edges_from(graph.nodes[late])} == {own.decision}


def test_workspace_without_events_has_an_empty_graph(workspace: Workspace) -> None:
    graph = build_graph(Registry.of(workspace))
    assert (graph.nodes, graph.edges, graph.problems) == ({}, (), ())
