"""`llmops lineage`: what anything was made from and what was made from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import typer

from llmops.cli.output import as_json
from llmops.registry.adapters import Registry
from llmops.registry.graph import Graph, build_graph
from llmops.registry.nodes import Edge, Node, Step
from llmops.settings import find_workspace

SCHEMA = "llmops.lineage_graph/1"
N_RUNS = 4
"""Runs of rating numbers that are spelt out; more become the first and the last."""


def lineage(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="latest, a public or adapter name, name@digest12, 6 digits of any digest, rating:12, KIND:NAME.",
        ),
    ],
    up: Annotated[bool, typer.Option("--up", help="Only what it was made from.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what was made from it.")] = False,
    full: Annotated[bool, typer.Option("--full", help="A line for every rating.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON, with every edge.")] = False,
) -> None:
    """Show what an adapter, report, rating, decision, release ... was made from, and what was made from it."""
    graph = build_graph(Registry.of(find_workspace()))
    for problem in graph.problems:
        typer.echo(f"warning: {problem}", err=True)
    node = graph.find(reference)
    behind = graph.upstream(node) if up or not down else None
    beyond = graph.downstream(node) if down or not up else None
    if json:
        as_json(_json(graph, node, behind, beyond))
        return
    typer.echo(_line(node))
    for heading, steps in (("made from", behind), ("used by", beyond)):
        if steps is not None:
            typer.echo(f"\n{heading}{'' if steps else ': nothing that the ledger knows'}")
            for line in _tree(graph, node, steps, full):
                typer.echo(line)


def _json(
    graph: Graph, node: Node, behind: Sequence[Step] | None, beyond: Sequence[Step] | None
) -> dict[str, Any]:
    """The same as plain values; `edges` are all those between the nodes that are listed."""
    shown = {node.id} | {step.node.id for steps in (behind, beyond) if steps for step in steps}
    sides = {"upstream": behind, "downstream": beyond}
    return {
        "schema": SCHEMA,
        "node": asdict(node),
        **{
            side: [{**asdict(s.node), "depth": s.depth, "word": s.edge.word} for s in steps]
            for side, steps in sides.items()
            if steps is not None
        },
        "edges": [asdict(e) for e in graph.edges if e.source in shown and e.target in shown],
        "problems": list(graph.problems),
    }


# ------------------------------------------------------------ the tree


def _tree(graph: Graph, start: Node, steps: Sequence[Step], full: bool) -> Iterator[str]:
    """A line a step, indented by its distance; ratings of one campaign that nothing hangs on are one line together."""
    hung = {step.edge for step in steps}
    shown = {start.id} | {step.node.id for step in steps}
    is_end = [i + 1 == len(steps) or steps[i + 1].depth <= step.depth for i, step in enumerate(steps)]

    def together(pair: tuple[Step, bool]) -> object:
        step, ends = pair
        if full or step.node.kind != "rating" or step.node.problem or not ends:
            return step.node.id
        return step.depth, step.edge.word, _campaign(graph, step.node)

    for _, pairs in groupby(zip(steps, is_end, strict=True), key=together):
        group = [step for step, _ in pairs]
        first, indent = group[0], "  " * group[0].depth
        if len(group) > 1:
            numbers = _numbers([int(step.node.name[1:]) for step in group])
            yield f"{indent}{len(group)} ratings of {_campaign(graph, first.node)}: {numbers} ({first.edge.word})"
        else:
            words = [first.edge.word, *_elsewhere(graph, first.node, shown, hung)]
            yield f"{indent}{_line(first.node, '; '.join(words))}"


def _line(node: Node, words: str = "") -> str:
    """Kind, short digest, name, label, (how it hangs together, when), and what is wrong with it."""
    label = f": {node.label}" if node.label else ""
    about = ", ".join(part for part in (words, node.at) if part)
    problem = f"  {node.problem}" if node.problem else ""
    return f"{node.title}{label}{f' ({about})' if about else ''}{problem}"


def _elsewhere(graph: Graph, node: Node, shown: set[str], hung: set[Edge]) -> list[str]:
    """What else of the tree a node leads to: a node hangs in one place alone. Ratings are too many to be named."""
    edges = [edge for edge in graph.edges_from(node) if edge.target in shown and edge not in hung]
    far = [(edge.word, graph.nodes[edge.target]) for edge in edges]
    return [f"{word} {there.handle}" for word, there in far if "rating" not in (node.kind, there.kind)]


def _campaign(graph: Graph, rating: Node) -> str:
    return next((graph.nodes[edge.target].title for edge in graph.edges_from(rating)), "?")


def _numbers(numbers: Sequence[int]) -> str:
    """Rating numbers as runs.

    >>> _numbers([1, 2, 3, 5])
    '#1..#3, #5'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    if len(runs) > N_RUNS:
        return f"between #{runs[0][0]} and #{runs[-1][-1]}"
    return ", ".join("..".join(f"#{number}" for number in run) for run in runs)
