"""What rests on ratings that are gone: taken back, or about deleted texts. Found by walking the lineage from each.

Pure functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from llmops.registry.nodes import Edge, Node

CARRIES = frozenset(
    {
        "made from",
        "trained on",
        "continues",
        "counts",
        "approves",
        "stands on",
        "puts forward",
        "stands for",
    }
)
"""Words of the edges along which a rating has an effect; a report that measures an adapter says what it says."""
MARK = "WITHDRAWN"


def marked(nodes: Mapping[str, Node], edges: Iterable[Edge], gone: Mapping[str, str]) -> dict[str, Node]:
    """The nodes, those that rest on ratings among `gone` (digest -> why) with a problem that says on how many."""
    effects: dict[str, list[str]] = defaultdict(list)
    for edge in edges:
        if edge.word in CARRIES:
            effects[edge.target].append(edge.source)
    rests: dict[str, set[str]] = defaultdict(set)
    for rating in gone.keys() & nodes.keys():
        waiting, reached = [rating], {rating}
        while waiting:
            for there in effects[waiting.pop()]:
                if there not in reached:
                    reached.add(there)
                    waiting.append(there)
                    rests[there].add(rating)
    return {node_id: _marked(node, rests.get(node_id), gone.get(node_id)) for node_id, node in nodes.items()}


def unmarked(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """The nodes without what `marked` says of them."""
    return {i: replace(node, problem=None) if is_marked(node) else node for i, node in nodes.items()}


def is_marked(node: Node) -> bool:
    """Whether something rests on ratings that were taken back."""
    return (node.problem or "").startswith(MARK)


def _marked(node: Node, rests: set[str] | None, why: str | None) -> Node:
    if node.problem is not None or not (rests or why):
        return node
    if why:
        return replace(node, problem=f"{MARK}: {why}")
    n = len(rests or ())
    return replace(node, problem=f"{MARK}: rests on {n} rating{'s' if n != 1 else ''} that were taken back")
