"""`llmops eval grow`: failures become cases of a suite, each confirmed by a person."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.errors import BadRequest, DataError
from llmops.registry.adapters import Registry
from llmops.settings import Workspace, find_workspace

if TYPE_CHECKING:
    from llmops.evals.grow.append import GrownSuite
    from llmops.evals.grow.proposal import Decided, Proposal
    from llmops.evals.grow.sources import Seen


def grow(
    suite: Annotated[Path, typer.Argument(help="A suite with `cases: {kind: file}`.")],
    campaign: Annotated[
        list[str] | None,
        typer.Option(
            help="Rating campaign: what was rated both bad, or where the champion lost; repeatable."
        ),
    ] = None,
    session: Annotated[
        list[str] | None, typer.Option(help="Evaluation session: errored and worst cases; repeatable.")
    ] = None,
    captured: Annotated[
        list[Path] | None, typer.Option(help="JSONL file of captured interactions; repeatable.")
    ] = None,
    served: Annotated[
        list[str] | None,
        typer.Option(help="Public name: captured answers that people called bad or corrected; repeatable."),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="With --session: this many of the worst cases.")] = 10,
    suite_file: Annotated[
        list[Path] | None,
        typer.Option(help="With --session: file of its suite, where that lies outside evals/suites."),
    ] = None,
    propose: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write the proposed cases here, to decide in the file.")
    ] = None,
    confirm: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the cases that say yes in this proposed file.")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--as", help="Who confirms; default: your login. Taken at its word.")
    ] = None,
) -> None:
    """Propose failures as new cases of a suite, and append those that a person confirms; nothing is added unasked.

    Without --propose or --confirm each is shown and asked about here.
    """
    from llmops.evals.grow.append import grown_suite
    from llmops.evals.grow.proposal import read_proposal, write_proposal

    _require_one_way(bool(campaign or session or captured or served), propose, confirm)
    workspace, target = find_workspace(), grown_suite(suite)
    name = getpass.getuser() if by is None else by
    if confirm is not None:
        _append(Registry.of(workspace), target, read_proposal(confirm), name)
        return
    seen = _seen(workspace, (campaign or [], session or [], captured or []), (suite_file or [], worst))
    seen += _of_served(workspace, served or [])
    proposal = _proposed(workspace, target, seen)
    if propose is None:
        _append(Registry.of(workspace), target, _ask(target, proposal), name)
        return
    write_proposal(propose, proposal)
    typer.echo(f"{propose}: write yes or no into `decision` of each line, then run")
    typer.echo(f"  llmops eval grow {suite} --confirm {propose} --as NAME")


def _require_one_way(asked: bool, propose: Path | None, confirm: Path | None) -> None:
    """Cases are proposed or a proposed file is confirmed, never both and never neither."""
    if confirm is not None and (asked or propose is not None):
        raise BadRequest("eval grow: --confirm reads a proposed file; leave out what proposes")
    if confirm is None and not asked:
        raise BadRequest(
            "eval grow: name --campaign, --session, --served or --captured to propose from, or --confirm"
        )


def _seen(
    workspace: Workspace, names: tuple[list[str], list[str], list[Path]], how: tuple[list[Path], int]
) -> list[Seen]:
    from llmops.evals.grow.sources import from_campaign, from_captured, from_session

    campaigns, sessions, files = names
    registry = Registry.of(workspace)
    found = [seen for name in campaigns for seen in from_campaign(registry, name)]
    found += [seen for name in sessions for seen in from_session(workspace, name, *how)]
    return found + [seen for path in files for seen in from_captured(path)]


def _of_served(workspace: Workspace, names: list[str]) -> list[Seen]:
    from llmops.evals.grow.served import from_served

    return [seen for name in names for seen in from_served(workspace, name)]


def _proposed(workspace: Workspace, target: GrownSuite, seen: list[Seen]) -> Proposal:
    from llmops.evals.grow.proposal import propose

    proposal = propose(Registry.of(workspace), target.cases, seen)
    left = ", ".join(f"{n} {reason}" for reason, n in proposal.n_left_out.items())
    typer.echo(f"{len(proposal.seen)} proposed for {target.name}" + (f"; left out: {left}" if left else ""))
    return proposal


def _ask(target: GrownSuite, proposal: Proposal) -> list[Decided]:
    """Show each proposed case and take an answer; `q` leaves the rest undecided."""
    from llmops.evals.grow.proposal import Decided, case_line

    decided = []
    for i, seen in enumerate(proposal.seen, start=1):
        line = case_line(seen.case)
        _show(seen, f"{i} of {len(proposal.seen)}")
        answer = _choice()
        while answer == "e" or (answer == "y" and not _fits(target, line)):
            line = _edited(line) if answer == "e" else line
            answer = _choice()
        if answer == "q":
            break
        decided.append(Decided(line, answer == "y", seen.why, seen.origin))
    return decided


def _choice() -> str:
    while True:
        try:
            answer = str(typer.prompt("add? y, n, e to edit, q to stop")).strip().lower()
        except typer.Abort:
            raise BadRequest(
                "eval grow: nobody answered, nothing was added; "
                "use --propose and --confirm where nobody sits at the terminal"
            ) from None
        if answer in ("y", "n", "e", "q"):
            return answer


def _fits(target: GrownSuite, line: dict[str, object]) -> bool:
    from llmops.data.case_files import case_of

    try:
        target.require_usable(case_of(line, "the case"), "the case")
    except (ValueError, DataError) as error:
        typer.echo(f"  {error}")
        return False
    return True


def _edited(line: dict[str, object]) -> dict[str, object]:
    """The case's fields as the reader's editor leaves them; as they were when that is no JSON object."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.json"
        path.write_text(json.dumps(line, indent=2, ensure_ascii=False), encoding="utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(path)], check=True)
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            typer.echo(f"  not edited ({error}); the case is as it was")
            return line
    return found if isinstance(found, dict) else line


def _show(seen: Seen, place: str) -> None:
    typer.echo(f"\n{place}: {seen.why}\n  {seen.origin}")
    for message in seen.case.messages:
        typer.echo(f"  {message.role}: {message.content}")
    for answer in seen.answers:
        typer.echo(f"  answered: {answer}")
    for reference in seen.case.references:
        typer.echo(f"  reference: {reference}")


def _append(registry: Registry, target: GrownSuite, decided: list[Decided], name: str) -> None:
    from llmops.evals.grow.append import grow as append

    grown = append(registry, target, decided, name)
    n_no = sum(one.yes is False for one in decided)
    n_open = sum(one.yes is None for one in decided)
    left = "".join(f", {n} {reason}" for reason, n in grown.n_left_out.items())
    typer.echo(f"{target.file}: {len(grown.cases)} added; {n_no} declined, {n_open} undecided{left}")
