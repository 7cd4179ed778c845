"""The lineage graph: what was made from what, walked in both directions and searched by any reference people have.

Pure: `llmops.registry.graph` gathers the nodes and edges from ledger, store and database.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from llmops.errors import BadRequest
from llmops.schema import short

Kind = Literal[
    "base",
    "dataset",
    "adapter",
    "report",
    "campaign",
    "rating",
    "preferences",
    "calibration",
    "decision",
    "approval",
    "release",
    "rollout",
    "name",
]
KINDS: tuple[str, ...] = get_args(Kind)
"""In the order of the loop; neighbours are listed in it."""
MIN_DIGITS = 6
N_CANDIDATES = 8
LATEST = "latest"
"""What the newest thing of every kind is called."""
ACCEPTED = (
    f"give `latest`, a public name, an adapter's name or name@digest12, {MIN_DIGITS} or more digits of any digest, "
    f"rating:NUMBER, or KIND:REFERENCE (kinds: {', '.join(KINDS)})"
)


@dataclass(frozen=True)
class Node:
    """One thing that was made: `id` is its digest; of a public name the name itself, which no digest can be.

    `name` is what people call it: of a rating its number, of a report the model, of an approval the approver.
    `problem` says why it cannot be relied on: MISSING, CHANGED, UNREADABLE or WITHDRAWN, with the reason.
    """

    kind: Kind
    id: str
    name: str
    label: str
    at: str | None
    problem: str | None = None

    @property
    def handle(self) -> str:
        """Kind and short id, enough to find it by."""
        return f"{self.kind} {self.id if self.kind == 'name' else short(self.id)}"

    @property
    def title(self) -> str:
        """Kind, short id and name, as messages and trees have it."""
        return self.handle if self.kind == "name" else f"{self.handle} {self.name}"


@dataclass(frozen=True)
class Edge:
    """`source` was made from, or is about, `target` (ids); read `source word target`: adapter trained on dataset."""

    source: str
    word: str
    target: str


@dataclass(frozen=True)
class Step:
    """A node on a walk: its distance from the start, and the edge by which it was reached first."""

    node: Node
    depth: int
    edge: Edge


class Graph:
    """Nodes and the edges between them."""

    def __init__(
        self,
        nodes: Iterable[Node],
        edges: Iterable[Edge],
        called: Iterable[tuple[str, str]] = (),
        parts: Iterable[tuple[str, str]] = (),
        problems: Iterable[str] = (),
    ) -> None:
        """Index the nodes.

        Args:
            nodes: each once, oldest first within a kind.
            edges: between those nodes.
            called: (name, id of the node that bears it), the newest use of a name last.
            parts: (digest of a node's record or files, id of the node).
            problems: what is wrong with the sources as a whole.
        """
        self.nodes = {node.id: node for node in sorted(nodes, key=lambda n: KINDS.index(n.kind))}
        self.edges = tuple(edges)
        self.problems = tuple(problems)
        self._called = tuple(called)
        self._parts = tuple(parts)
        place = {node_id: i for i, node_id in enumerate(self.nodes)}
        self._out: dict[str, list[Edge]] = {node_id: [] for node_id in self.nodes}
        self._in: dict[str, list[Edge]] = {node_id: [] for node_id in self.nodes}
        for edge in self.edges:
            self._out[edge.source].append(edge)
            self._in[edge.target].append(edge)
        for edges_of in self._out.values():
            edges_of.sort(key=lambda e: place[e.target])
        for edges_of in self._in.values():
            edges_of.sort(key=lambda e: place[e.source])

    # ------------------------------------------------------------ walks

    def upstream(self, node: Node) -> tuple[Step, ...]:
        """All that a node was made from, each once at its shortest distance, what lies behind a step right after it."""
        return self._walk(node, self._out, lambda edge: edge.target)

    def downstream(self, node: Node) -> tuple[Step, ...]:
        """All that was made from a node or is about it, in the form of `upstream`."""
        return self._walk(node, self._in, lambda edge: edge.source)

    def edges_from(self, node: Node) -> tuple[Edge, ...]:
        """What a node was made from directly."""
        return tuple(self._out[node.id])

    def _walk(self, start: Node, ways: dict[str, list[Edge]], end: Callable[[Edge], str]) -> tuple[Step, ...]:
        """Nearest first, so that each node hangs where its distance is shortest; then told branch by branch."""
        branches: dict[str, list[Step]] = {start.id: []}  # also what was reached: a cycle ends there
        queue = deque([(start.id, 0)])
        while queue:
            here, depth = queue.popleft()
            for edge in ways[here]:
                there = end(edge)
                if there not in branches:
                    branches[there] = []
                    branches[here].append(Step(self.nodes[there], depth + 1, edge))
                    queue.append((there, depth + 1))
        told: list[Step] = []
        stack = branches[start.id][::-1]
        while stack:
            step = stack.pop()
            told.append(step)
            stack.extend(reversed(branches[step.node.id]))
        return tuple(told)

    # ------------------------------------------------------------ references

    def find(self, reference: str) -> Node:
        """The node that `reference` names.

        `latest` (the newest adapter), a public name, a name of an adapter or of anything else (its newest),
        `name@digest12`, the start of a digest of the thing, its record or its files, `#12` or `rating:12`; `KIND:`
        before any of them looks among that kind alone. Public names go before adapters', and both before others.

        Raises:
            BadRequest: nothing answers to it, and what would; or more than one thing does, and which.
        """
        prefix, colon, rest = reference.partition(":")
        kind = prefix if colon and prefix in KINDS else None
        word = rest if kind else reference
        if kind == "rating" and word.isdecimal():
            word = f"#{word}"
        found = self._named(word, kind) or self._starting(word, kind)
        if len(found) == 1:
            return self.nodes[found[0]]
        if not found:
            raise BadRequest(f"lineage {reference}: nothing answers to it; {ACCEPTED}")
        titles = [self.nodes[i].title for i in found[:N_CANDIDATES]]
        more = f" and {len(found) - N_CANDIDATES} more" if len(found) > N_CANDIDATES else ""
        raise BadRequest(
            f"lineage {reference}: {len(found)} things answer to it: {', '.join(titles)}{more}; "
            "give more digits, or KIND: before it"
        )

    def _named(self, word: str, kind: str | None) -> list[str]:
        if word == LATEST and kind is None:
            kind = "adapter"
        newest: dict[str, str] = {}
        for name, node_id in self._called:
            if name == word:
                newest[self.nodes[node_id].kind] = node_id
        if kind:
            return [newest[kind]] if kind in newest else []
        for first in ("name", "adapter"):
            if first in newest:
                return [newest[first]]
        return list(newest.values())

    def _starting(self, word: str, kind: str | None) -> list[str]:
        """Everything whose digest, or a digest of whose record or files, starts with the digits of `word`."""
        name, at, digits = word.rpartition("@")
        if len(digits) < MIN_DIGITS:
            return []
        ids = [i for i, node in self.nodes.items() if node.kind != "name" and i.startswith(digits)]
        if at:
            bearers = {node_id for called, node_id in self._called if called == name}
            ids = [i for i in ids if i in bearers]
        else:
            ids += [i for part, i in self._parts if part.startswith(digits)]
        return [i for i in dict.fromkeys(ids) if kind in (None, self.nodes[i].kind)]
