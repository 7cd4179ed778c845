"""Where failures are found: answers that raters called bad, cases of a session, interactions captured in a file.

Each becomes a `Seen`: what was asked, what was answered, and why it is worth asking again. Nothing is written here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmops.data.case_files import case_of
from llmops.data.containers import read_values
from llmops.errors import BadRequest, DataError
from llmops.evals.evidence import is_answered
from llmops.evals.finished import session_reports
from llmops.evals.reports.comparison import How, compare
from llmops.evals.reports.stored import find_scoring, load_result
from llmops.evals.reports.units import shown
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import find_campaign
from llmops.ratings.outcomes import Vote, outcome, votes_by_item
from llmops.records import Campaign, Case, Dropped, Item, Report
from llmops.registry.adapters import Registry
from llmops.registry.names import name_states
from llmops.schema import JsonDict, short
from llmops.settings import Workspace

GOOD, BAD = "good", "bad"
ANSWERED = ("completion", "rating", "error")  # fields of a captured interaction that are no part of a case


@dataclass(frozen=True)
class Seen:
    """A failure: the case it would become, why, where it was seen, and what was answered."""

    case: Case
    why: str
    origin: str
    answers: tuple[str, ...]


def from_campaign(registry: Registry, name: str) -> list[Seen]:
    """Items of which most votes say that both answers are bad, or that the champion's is the worse one.

    The champion is the adapter that a public name stands for; in a gate campaign the baseline counts as one too. Where
    it lost, the answer that won is proposed as the reference.

    Raises:
        BadRequest: there is no such campaign, or votes are still being given: what is taken from them now would depend
            on when one looks.
    """
    campaign = find_campaign(registry.store, registry.ledger, name)
    book = RatingBook(registry.store, registry.ledger, campaign)
    if not book.settled():
        raise BadRequest(
            f"campaign {campaign.name}: votes are still being given; wait, or end it with "
            f"`llmops feedback close {campaign.name}`"
        )
    served = _served(registry, campaign)
    votes = votes_by_item(book.evidence())
    found = (_rated(item, votes.get(item.digest, []), served, campaign) for item in book.items())
    return [seen for seen in found if seen is not None]


def from_session(workspace: Workspace, session: str, suite_files: Sequence[Path], n_worst: int) -> list[Seen]:
    """The cases that a session's candidate did not answer, and those it lost most on against the system before it.

    Raises:
        BadRequest: there are no reports of the session, or no file of its suite.
    """
    registry = Registry.of(workspace)
    reports = session_reports(registry, session)
    if not reports:
        raise BadRequest(f"session {session}: has no reports; name one that `llmops eval` finished")
    found: list[Seen] = []
    for suite in dict.fromkeys(report.suite for report in reports):
        own = [report for report in reports if report.suite == suite]
        found += _of_suite(registry, workspace, own[-2:], (suite_files, n_worst))
    return found


def from_captured(path: Path) -> list[Seen]:
    """Interactions of a JSONL file: a case's fields, with the answer that was given as `completion` or last turn.

    `rating: good` leaves a line out; `error` says that nothing was answered. Only `references` are good answers.

    Raises:
        DataError: the file is missing, or a line is no interaction.
    """
    found = []
    for value in read_values(path, path.name):
        if isinstance(value, Dropped):
            raise DataError(f"{path.parent / value.source}: {value.reason}; correct the line")
        seen = _captured(value.data, value.source, path)
        if seen is not None:
            found.append(seen)
    return found


def _served(registry: Registry, campaign: Campaign) -> set[str]:
    states = name_states(registry.store, registry.ledger).values()
    champions = {state.champion_adapter for state in states if state.champion_adapter}
    return champions | ({campaign.systems[1]} if campaign.purpose == "gate" else set())


def _rated(item: Item, votes: Sequence[Vote], served: Iterable[str], campaign: Campaign) -> Seen | None:
    if not votes:
        return None
    said = outcome(votes)
    counts = ", ".join(f"{name} {n}" for name, n in sorted(Counter(votes).items()))
    references: tuple[str, ...] = ()
    if said == "both_bad":
        why = f"both answers were rated bad ({counts})"
    elif said in ("first", "second"):
        winner = 0 if said == "first" else 1
        loser, other = campaign.systems[1 - winner], campaign.systems[winner]
        if loser not in served or loser == other:
            return None
        why, references = f"the champion {short(loser)} lost ({counts})", (item.answers[winner],)
    else:
        return None
    case = Case(item.messages, references, item.group, item.source)
    return Seen(case, why, f"campaign {campaign.name}, item {short(item.digest)}", item.answers)


def _of_suite(
    registry: Registry, workspace: Workspace, reports: Sequence[Report], wanted: tuple[Sequence[Path], int]
) -> Iterator[Seen]:
    suite_files, n_worst = wanted
    scoring = find_scoring(workspace, reports[-1], suite_files)
    loaded = [load_result(registry, report, scoring.metrics) for report in reports]
    cases, result = loaded[-1]
    report = result.report
    origin = f"session {report.session}, {report.suite}, {report.system}"
    for case, own in zip(cases, result.samples, strict=True):
        if not is_answered(own):
            error = next(sample.error for sample in own if sample.status == "errored")
            yield Seen(case, f"errored: {error}", origin, ())
    if len(loaded) < 2 or not n_worst or [c.digest for c in loaded[0][0]] != [c.digest for c in cases]:
        return
    how = How(clusters=scoring.clusters(cases), n_shown=n_worst)
    found = compare(scoring.metrics, cases, (loaded[0][1], result), how)
    for line in found.worst if found else ():
        assert found is not None
        before, after = (shown(score, found.line(found.by).unit) for score in line.scores)
        why = f"{found.by} {before} -> {after} against {found.baseline.system}"
        yield Seen(line.case, why, origin, (line.baseline[0].text, line.candidate[0].text))


def _captured(data: object, source: str, path: Path) -> Seen | None:
    """The failure that a line tells; None when it was rated good."""
    where = path.parent / source
    if not isinstance(data, dict):
        raise DataError(f"{where}: not an object: {type(data).__name__}; correct the line")
    rating = data.get("rating")
    if rating not in (None, GOOD, BAD):
        raise DataError(f"{where}: rating is {rating!r:.40}; write {GOOD} or {BAD}")
    if rating == GOOD:
        return None
    asked, answer = _split(data)
    try:
        case = case_of(asked, source)
    except ValueError as error:
        raise DataError(f"{where}: {error}; correct the line") from None
    why = f"errored: {data['error']}" if data.get("error") else f"rated {BAD}" if rating else "captured"
    return Seen(case, why, f"{path.name}, line {source.rpartition(':')[2]}", (answer,) if answer else ())


def _split(data: JsonDict) -> tuple[JsonDict, str]:
    """What was asked, as a case's fields, and the answer that was given."""
    asked = {name: value for name, value in data.items() if name not in ANSWERED}
    answer = data.get("completion")
    turns = data.get("messages")
    last = turns[-1] if isinstance(turns, list) and turns else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        asked["messages"], answer = turns[:-1], last.get("content")  # type: ignore[index]
    return asked, answer if isinstance(answer, str) else ""
