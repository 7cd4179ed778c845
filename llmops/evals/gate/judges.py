"""A judge in a gate: shown where nobody has checked it, a check where people's votes correct it.

Only a judge that is calibrated on a campaign about the same two reports can hold a candidate back or let it pass, by
the interval that those votes give. One that was away, or gave hardly any judgement, could not check: INVALID, which
says nothing against the candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmops.errors import InvalidEvidence
from llmops.evals.ballots import campaigns_about
from llmops.evals.electorate import EVEN
from llmops.evals.gate.config import GateConfig
from llmops.evals.gate.judge_rules import JudgeRules
from llmops.evals.gate.lines import Line, Question, Seen, decided
from llmops.evals.gate.vote_checks import question_of, uncounted, win_rate_said
from llmops.evals.judge.calibrate import Calibration, calibrate, count_outcomes, n_missing
from llmops.evals.judge.pairwise import pairwise_figures
from llmops.evals.judge.review import Reviewed, find_reviewed
from llmops.evals.unseen import require_unseen
from llmops.records import Campaign, Figure, JudgeEvidence
from llmops.registry.adapters import Registry

if TYPE_CHECKING:
    from llmops.evals.review import Evidence

METRIC = "judge_win_rate"
JUDGE_SAID = "judge says: "
"""How a reason begins that carries what a judge found, whatever the verdict."""


@dataclass(frozen=True)
class Judged:
    """What a judge adds to a decision: its check (none where it informs), words for the reader, and the evidence."""

    lines: list[Line]
    notes: tuple[str, ...]
    evidence: JudgeEvidence | None = None


@dataclass(frozen=True)
class Asked:
    """A gate, and the folder of its file, which the judge's file is relative to."""

    gate: GateConfig
    folder: Path


@dataclass(frozen=True)
class _Ask:
    gate: GateConfig
    rules: JudgeRules
    name: str

    @property
    def command(self) -> str:
        """How the judge is asked."""
        on = f" --campaign {self.rules.calibrated_on}" if self.rules.calibrated_on else ""
        return f"`llmops eval judge` with its YAML file{on}"


def judge_lines(registry: Registry, asked: Asked, evidence: Evidence) -> Judged:
    """What the gate's judge says of the two reports of `evidence`.

    Raises:
        ConfigError: the judge's file cannot be used.
        InvalidEvidence: ratings, items or the campaign that calibrates the judge were altered.
    """
    gate, rules = asked.gate, asked.gate.judge
    if rules is None:
        raise ValueError(f"gate {gate.name} asks no judge")
    judge = rules.judge(asked.folder)
    ask = _Ask(gate, rules, judge.config.name)
    try:
        found = find_reviewed(registry, judge, evidence.reports)
    except InvalidEvidence as error:
        return _could_not_check(ask, str(error))
    if found is None:
        return _could_not_check(ask, f"no judgements of these two reports; run {ask.command}")
    if found.faults:
        return _could_not_check(ask, f"{found.faults[0]}; run {ask.command} again", found)
    if rules.calibrated_on is None:
        judged = [case for case in found.judged if case is not None]
        clusters = found.subject.clusters_of(case.case for case in judged)
        figures = pairwise_figures(judged, gate.level, clusters)
        said = _in_words(ask, figures, "win_rate")
        note = f"{said}; informs only: it is calibrated on nobody's votes"
        return Judged([], (note,), JudgeEvidence(found.record.digest()))
    about = campaigns_about(registry, rules.calibrated_on, evidence.reports)
    if not about:
        why = f"no campaign {rules.calibrated_on} about these two reports calibrates it; run `llmops feedback open`"
        return _not_counted(ask, why, 0, rules.min_items)
    return _calibrated(registry, ask, found, about[-1])


def _calibrated(registry: Registry, ask: _Ask, found: Reviewed, campaign: Campaign) -> Judged:
    missing = n_missing(registry, campaign)
    if missing:
        why = f"{missing} of {campaign.n_items} items of campaign {campaign.name} lack the votes that calibrate it"
        return _not_counted(ask, why, campaign.n_items - missing, campaign.n_items)
    try:
        require_unseen(registry, campaign)
    except InvalidEvidence as error:
        return _could_not_check(ask, str(error), found)
    voted = count_outcomes(registry, campaign, found.subject)
    if voted.evidence.n_rated < 3:
        why = (
            f"{voted.evidence.n_rated} rated items calibrate nothing; the gate asks for {ask.rules.min_items}"
        )
        return _not_counted(ask, why, voted.evidence.n_rated, ask.rules.min_items)
    beside = calibrate(found.subject, found.judged, voted.votes, ask.gate.level)
    return Judged(
        [_line(ask, beside)],
        (f"{_in_words(ask, beside.figures, 'calibrated_win_rate')}; calibrated on campaign {campaign.name}",),
        JudgeEvidence(found.record.digest(), voted.evidence),
    )


def _line(ask: _Ask, beside: Calibration) -> Line:
    """The check: the calibrated interval held against the threshold."""
    interval = beside.win_rate.interval
    seen = Seen(interval, EVEN + interval.estimate, EVEN, interval.method)
    return win_rate_said(decided(_question(ask), seen))


def _question(ask: _Ask) -> Question:
    rules, gate = ask.rules, ask.gate
    return question_of("judge", METRIC, rules, (rules.suite or gate.first, gate.level, gate.power))


def _could_not_check(ask: _Ask, why: str, found: Reviewed | None = None) -> Judged:
    """INVALID for a judge that decides; words alone for one that informs, which holds nothing back."""
    said = f"judge {ask.name}: could not check: {why}"
    if ask.rules.calibrated_on is None:
        return Judged([], (f"{said}; informs only",))
    evidence = JudgeEvidence(found.record.digest()) if found else None
    return Judged([uncounted(_question(ask), "INVALID", (0, None), said)], (), evidence)


def _not_counted(ask: _Ask, why: str, n_rated: int, n_needed: int) -> Judged:
    reason = f"judge {ask.name}: {why}"
    return Judged([uncounted(_question(ask), "INCONCLUSIVE", (n_rated, n_needed), reason)], ())


def _in_words(ask: _Ask, figures: tuple[Figure, ...], name: str) -> str:
    """The judge's win rate with its interval, and how far it can be believed."""
    by_name = {figure.name: figure for figure in figures}
    rate = by_name[name]
    words = [
        f"{JUDGE_SAID}{ask.name}: win rate {rate.value:.1f} % [{rate.low:.1f}, {rate.high:.1f}] on {rate.n} cases"
    ]
    words += [f"flips {by_name['flip_rate'].value:.0f} %"] if "flip_rate" in by_name else []
    words += [f"agrees with people on {by_name['agreement'].value:.0f} %"] if "agreement" in by_name else []
    words += [f"kappa {by_name['kappa'].value:.2f}"] if "kappa" in by_name else []
    return ", ".join(words)
