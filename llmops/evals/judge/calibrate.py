"""A judge held against people: the votes of a campaign about the two reports whose answers it judged.

Nothing is counted until the campaign is complete or closed, and it is closed once its votes were looked at, so that
nobody votes on with the result in sight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llmops.errors import InvalidEvidence
from llmops.evals.ballots import cast_by_item, frozen, verify_items
from llmops.evals.electorate import WORTH, Electorate, win_rate
from llmops.evals.evidence import prompt_digest
from llmops.evals.judge.agreement import OUTCOMES, agreement_figures, confusion, three_way
from llmops.evals.judge.pairwise import Compared, figure, length_correlation
from llmops.evals.judge.pairwise import Outcome as Verdict
from llmops.evals.judge.ppi import SCORE, Calibrated, Others, Rated, calibrated_win_rate
from llmops.evals.judge.subject import Subject
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import close_campaign
from llmops.ratings.outcomes import Vote, live, vote_of
from llmops.records import Campaign, Figure, JudgeCalibration, JudgementSet, RatingEvidence
from llmops.registry.adapters import Registry
from llmops.settings import now

EVEN = 0.5
NO_OPINION = EVEN
"""What a judge that gave no verdict is taken to predict: any constant keeps the calibrated rate right."""
MIN_RATED = 3


@dataclass(frozen=True)
class Voted:
    """Who voted what on each case (a digest), and the votes frozen as a decision carries them."""

    votes: Mapping[str, Sequence[tuple[str, Vote]]]
    evidence: RatingEvidence


@dataclass(frozen=True)
class Calibration:
    """A judge beside people: what is recorded of it, and the calibrated win rate less 50, in points."""

    win_rate: Calibrated
    figures: tuple[Figure, ...]
    confusion: dict[str, dict[str, int]]
    n_rated: int


def n_missing(registry: Registry, campaign: Campaign) -> int:
    """How many items still lack votes while more may come; 0 when the votes may be looked at."""
    book = RatingBook(registry.store, registry.ledger, campaign)
    if book.settled():
        return 0
    standing = book.standing()
    return standing.n_items - standing.n_full


def count_outcomes(registry: Registry, campaign: Campaign, subject: Subject) -> Voted:
    """The votes on a settled campaign's items, by the case each is about; the campaign is closed.

    Raises:
        InvalidEvidence: ratings or items were altered, or the items are not the subject's answers.
    """
    book = RatingBook(registry.store, registry.ledger, campaign)
    rows = book.evidence()
    cases = {
        prompt_digest(case.messages): (case.digest, (ours.text, theirs.text))
        for case, ours, theirs in zip(subject.cases, *subject.answers, strict=True)
    }
    verify_items(registry, book, {prompt: answers for prompt, (_, answers) in cases.items()})
    case_of = {item.digest: cases[prompt_digest(item.messages)][0] for item in book.items()}
    counting = [row for row in live(rows) if vote_of(row) is not None]
    votes = {case_of[item]: given for item, given in cast_by_item(counting).items()}
    evidence = frozen(registry, campaign, counting, Electorate.of(list(votes.values())).outcomes)
    close_campaign(registry.ledger, campaign)
    return Voted(votes, evidence)


def calibrate(
    subject: Subject,
    judged: Sequence[Compared | None],
    people: Mapping[str, Sequence[tuple[str, Vote]]],
    level: float,
) -> Calibration:
    """Agreement on the rated cases, people's win rate alone, and the one that the judge's other cases sharpen.

    `judged[i]` is about `subject.pairs()[i]`; `people` are votes by case digest; `level` is that of each bound. Cases
    of a cluster and votes of a rater count as alike.

    Raises:
        InvalidEvidence: fewer than 3 cases were rated.
    """
    cases = [pair[0].case.digest for pair in subject.pairs()]
    verdicts = {case.case: case for case in judged if case is not None}
    rated = [case for case in cases if case in people]
    if len(rated) < MIN_RATED:
        raise InvalidEvidence(
            f"calibration: {len(rated)} rated cases; nothing can be calibrated on fewer than {MIN_RATED}"
        )

    def predicted(of: Sequence[str]) -> Others:
        said = [SCORE.get(verdicts[c].outcome, EVEN) if c in verdicts else NO_OPINION for c in of]
        return Others(said, subject.clusters_of(of))

    voters = Electorate.of([people[case] for case in rated], subject.clusters_of(rated))
    others = predicted([case for case in cases if case not in people])
    found = calibrated_win_rate(_rated(voters, predicted(rated)), others, level)
    interval = replace(found.interval, method=f"{found.interval.method}; by {voters.alike_by}")
    outcomes = dict(zip(rated, voters.outcomes, strict=True))
    both = [verdicts[case] for case in rated if case in verdicts]
    theirs = [three_way(outcomes[case.case]) for case in both]
    figures = (
        figure("calibrated_win_rate", interval, shift=50.0),
        figure("people_win_rate", win_rate(voters, level), shift=50.0),
        *_beside(theirs, both, level, subject.clusters_of(case.case for case in both)),
    )
    counts = confusion(theirs, [case.outcome for case in both])
    table = {p: {j: int(counts[i, k]) for k, j in enumerate(OUTCOMES)} for i, p in enumerate(OUTCOMES)}
    return Calibration(replace(found, interval=interval), figures, table, len(rated))


def _beside(
    people: Sequence[Verdict], judged: Sequence[Compared], level: float, clusters: list[str] | None
) -> list[Figure]:
    """How far people and the judge agree on the same cases, and how far either goes by length."""
    its, lengths = [case.outcome for case in judged], [case.longer_by for case in judged]
    figures = agreement_figures(people, its, level, clusters)
    for name, said in (("people_length_correlation", people), ("judge_length_correlation", its)):
        correlation = length_correlation(said, lengths, level, clusters)
        figures += [] if correlation is None else [figure(name, correlation)]
    return figures


def _rated(voters: Electorate, judge: Others) -> Rated:
    """Every vote with its case and, where enough people voted to speak for others, its rater."""
    rows = [(i, rater, WORTH[vote]) for i, given in enumerate(voters.votes) for rater, vote in given]
    case, raters, worth = zip(*rows, strict=True)
    return Rated(worth, judge.judge, case, raters if voters.speaks_for_others else None, judge.clusters)


def calibration_record(
    registry: Registry, judged: JudgementSet, campaign: Campaign, voted: Voted, found: Calibration
) -> JudgeCalibration:
    """Store what calibrating came to, and tell the ledger."""
    record = JudgeCalibration(
        judgements=judged.digest(),
        campaign=campaign.digest(),
        votes=voted.evidence.votes,
        n_rated=found.n_rated,
        n_votes=voted.evidence.n_votes,
        n_raters=voted.evidence.n_raters,
        weight=found.win_rate.weight,
        figures=found.figures,
        confusion=found.confusion,
        created_at=now(),
    )
    body = {"calibration": registry.store.put_record(record), "judgements": record.judgements}
    registry.ledger.append("judge.calibrated", {**body, "campaign": record.campaign, "judge": judged.judge})
    return record
