"""The lineage of everything a workspace knows: folded from ledger events, store records and rating rows, never stored.

The ledger says what there is, records say what it was made from. What is gone or altered is a node with a `problem`,
and the rest goes on: a lineage is asked for exactly when something is broken.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select

from llmops.errors import InvalidEvidence
from llmops.ledger import Event, Ledger
from llmops.ratings.outcomes import rating_of
from llmops.ratings.withdrawn import lost_ratings
from llmops.records import Rating
from llmops.registry.adapters import Registry
from llmops.registry.known import Known, Sources
from llmops.registry.names import RELEASE_KINDS, readable_anchors, readable_states
from llmops.registry.nodes import LATEST, Edge, Graph, Kind, Node
from llmops.registry.sources import READERS
from llmops.registry.taken_back import marked
from llmops.schema import short
from llmops.store import Store
from llmops.tables import ratings

__all__ = ["Graph", "build_graph"]

TELLS: dict[str, tuple[Kind, str, str | None, tuple[str, ...]]] = {
    "dataset.snapshotted": ("dataset", "snapshot", "name", ()),
    "adapter.registered": ("adapter", "adapter", "name", ("record",)),
    "report.stored": ("report", "report", "suite", ("model",)),
    "campaign.opened": ("campaign", "campaign", "name", ()),
    "campaign.closed": ("campaign", "campaign", None, ("name",)),
    "rating.given": ("rating", "rating", "number", ("campaign", "item")),
    "preferences.snapshotted": ("preferences", "preferences", "name", ("campaign",)),
    "judge.calibrated": ("calibration", "calibration", "judge", ("campaign",)),
    "decision.made": ("decision", "decision", "public_name", ("verdict", "candidate")),
    "approval.given": ("approval", "approval", "approval", ("decision",)),
    "release.requested": ("release", "release", "public_name", ("kind", "adapter")),
    "release.activated": ("release", "release", None, ("public_name", "adapter")),
    "release.refused": ("release", "release", None, ("public_name", "adapter", "reason")),
    "rollout.requested": ("rollout", "rollout", "public_name", ()),
    "rollout.started": ("rollout", "rollout", None, ("public_name",)),
    "rollout.refused": ("rollout", "rollout", None, ("public_name", "reason")),
    "rollout.stepped": ("rollout", "rollout", None, ("public_name", "share")),
    "rollout.ready": ("rollout", "rollout", None, ("public_name",)),
    "rollout.aborted": ("rollout", "rollout", None, ("public_name", "reason")),
}
"""Kind of event -> kind of thing it is about; the fields of its body with the thing's digest and, where the event made
the thing, what it may be called by; and the other fields that are read."""


def build_graph(registry: Registry) -> Graph:
    """The graph of everything that ledger and store know, at this moment; reads only.

    Raises:
        StoreError: a shared store cannot be reached, so that nothing can be said about what is in it.
    """
    told = [event for event in registry.ledger.events() if event.kind in TELLS]
    events = [event for event in told if _whole(event)]
    fold = _Fold(_sources(registry, events), events)
    fold.things()
    fold.names(registry.store)
    nodes = marked(fold.nodes, fold.edges, lost_ratings(registry.ledger))
    return Graph(nodes.values(), fold.edges, fold.called, fold.parts, _chain(registry))


def _whole(event: Event) -> bool:
    """Whether the event says all that is read of it; one that does not was edited, which `_chain` tells."""
    _, key, name, others = TELLS[event.kind]
    return event.body.keys() >= {key, *([name] if name else ()), *others}


def _sources(registry: Registry, events: Iterable[Event]) -> Sources:
    registered = [e.body for e in events if e.kind == "adapter.registered"]
    opened = [e.body for e in events if e.kind == "campaign.opened"]
    rows = _rows(registry.ledger)
    return Sources(
        store=registry.store,
        rows=rows,
        registered=frozenset(str(body["adapter"]) for body in registered),
        campaign_names={str(body["campaign"]): str(body["name"]) for body in opened},
        superseded={row.supersedes: row.number for row, _ in rows.values() if row.supersedes is not None},
    )


def _rows(ledger: Ledger) -> dict[int, tuple[Rating, str]]:
    """The ratings in the database by number; read after the events, so that none the ledger names is still to come."""
    with ledger.engine.connect() as connection:
        found = connection.execute(select(ratings)).mappings().all()
    rows = ((rating_of({**row}), row["digest"]) for row in found)
    return {rating.number: (rating, str(digest)) for rating, digest in rows}


def _chain(registry: Registry) -> list[str]:
    """What is wrong with the ledger itself."""
    try:
        registry.ledger.verify(readable_anchors(registry.store))
    except InvalidEvidence as error:
        return [str(error)]
    return []


class _Fold:
    """Nodes and edges while they are gathered."""

    def __init__(self, sources: Sources, events: list[Event]) -> None:
        """Sort the events by what they are about."""
        self.nodes: dict[str, Node] = {}
        self.edges: dict[Edge, None] = {}  # a set in the order of finding
        self.called: list[tuple[str, str]] = []
        self.parts: list[tuple[str, str]] = []
        self._sources = sources
        self._events = events
        self._about: dict[Kind, dict[str, list[Event]]] = {kind: {} for kind in READERS}
        for event in self._events:
            kind, key, *_ = TELLS[event.kind]
            self._about[kind].setdefault(str(event.body[key]), []).append(event)

    def things(self) -> None:
        """A node for all that events are about, and for all that their records lead to."""
        waiting = [(kind, digest) for kind, found in self._about.items() for digest in found]
        for kind, digest in waiting:  # grows while it is walked
            if digest not in self.nodes:
                known = READERS[kind](self._sources, digest, self._about[kind].get(digest, ()))
                self._keep(kind, digest, known)
                waiting += [(far, target) for _, far, target in known.links]
        for event in self._events:
            _, key, name, _ = TELLS[event.kind]
            if name is not None:
                mark = "#" if name == "number" else ""
                made = str(event.body[key])
                self.called += [(f"{mark}{event.body[name]}", made), (LATEST, made)]
        self.called += [("base", node.id) for node in self.nodes.values() if node.kind == "base"]

    def names(self, store: Store) -> None:
        """A node for every public name, from the releases about it."""
        by_name: dict[str, list[Event]] = {}
        for event in self._events:
            if event.kind in RELEASE_KINDS:
                by_name.setdefault(str(event.body["public_name"]), []).append(event)
        states, damaged = readable_states(store, [e for about in by_name.values() for e in about])
        for name, about in by_name.items():
            champion = states[name].champion if name in states else None
            moves = [event for event in about if event.kind == "release.activated"]
            words = {str(e.body["release"]): "last moved by" for e in moves[-1:]}
            words |= {
                str(e.body["release"]): "waits for" for e in about[-1:] if e.kind == "release.requested"
            }
            words |= {champion.digest(): "stands for"} if champion else {}
            label = f"champion {short(champion.adapter)}" if champion else "no champion"
            known = Known(
                name,
                label=label if name in states else "its champion cannot be told",
                at=moves[-1].at if moves else None,
                links=tuple((word, "release", digest) for digest, word in words.items()),
                problem=f"UNREADABLE: {damaged[name]}" if name in damaged else None,
            )
            self._keep("name", name, known)
            self.called.append((name, name))

    def _keep(self, kind: Kind, node_id: str, known: Known) -> None:
        self.nodes[node_id] = Node(kind, node_id, known.name, known.label, known.at, known.problem)
        self.edges |= {Edge(node_id, word, target): None for word, _, target in known.links}
        self.parts += [(part, node_id) for part in known.parts]
