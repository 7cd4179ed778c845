"""One call from a judge's file to what it says: judged, stored, and held beside people where a campaign asked them."""

from __future__ import annotations

from dataclasses import dataclass

from llmops.errors import BadRequest
from llmops.evals.evidence import BOUND_LEVEL
from llmops.evals.judge.calibrate import calibrate, calibration_record, count_outcomes, n_missing
from llmops.evals.judge.kept import load_judgements
from llmops.evals.judge.load import Judge
from llmops.evals.judge.run import comparisons, judge_answers
from llmops.evals.judge.subject import About, find_campaign_pair, find_pair, find_systems
from llmops.ratings.campaigns import find_campaign
from llmops.records import JudgeCalibration, JudgementSet
from llmops.registry.adapters import Registry
from llmops.schema import Progress, no_progress
from llmops.settings import Workspace


@dataclass(frozen=True)
class Found:
    """The set of judgements; with a campaign the calibration, or how many of its items still lack votes."""

    judgements: JudgementSet
    calibration: JudgeCalibration | None = None
    n_missing: int = 0


def judge_session(
    judge: Judge, url: str, about: About, workspace: Workspace, progress: Progress = no_progress
) -> Found:
    """Judge the answers of a session.

    Raises: as `llmops.evals.judge.run.judge_answers` and `llmops.evals.judge.subject.find_pair`.
    """
    registry = Registry.of(workspace)
    find = find_pair if judge.config.kind == "pairwise" else find_systems
    return Found(judge_answers(judge, url, find(registry, about), workspace, progress))


def judge_campaign(
    judge: Judge, url: str, name: str, workspace: Workspace, progress: Progress = no_progress
) -> Found:
    """Judge the two reports that a campaign asks people about, and calibrate the judge on its votes once all are in.

    Raises:
        BadRequest: the judge scores answers one by one, or no such campaign.
        InvalidEvidence: ratings, items or answers were altered, or fewer than 3 items were rated.
        CouldNotRun: the judge is away; what it said is kept.
    """
    registry = Registry.of(workspace)
    if judge.config.kind != "pairwise":
        raise BadRequest(
            f"judge {judge.config.name}: scores answers one by one, people compare two; use kind pairwise"
        )
    campaign = find_campaign(registry.store, registry.ledger, name)
    subject = find_campaign_pair(registry, campaign)
    record = judge_answers(judge, url, subject, workspace, progress)
    missing = n_missing(registry, campaign)
    if missing or record.invalid:
        return Found(record, None, missing)
    voted = count_outcomes(registry, campaign, subject)
    said = load_judgements(registry.store, record.judgements)
    found = calibrate(subject, comparisons(subject, said), voted.votes, BOUND_LEVEL)
    return Found(record, calibration_record(registry, record, campaign, voted, found))
