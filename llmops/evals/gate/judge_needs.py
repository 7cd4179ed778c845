"""What a gate's judge needs before it may decide: people's votes on some cases, its own verdicts on all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmops.errors import LlmopsError
from llmops.evals.gate.config import GateConfig
from llmops.evals.gate.judge_rules import JudgeRules
from llmops.evals.gate.needs import POWERS, Assumptions, Needed
from llmops.evals.judge.agreement import OUTCOMES
from llmops.evals.judge.planning import JudgePlan, cases_for, law_of, law_with, votes_for
from llmops.evals.suite import load_suite
from llmops.records import JudgeCalibration, JudgementSet
from llmops.registry.adapters import Registry

LOSS_TO_WIN = OUTCOMES[::-1]
"""Outcomes by what the candidate gets, as laws order them."""


@dataclass(frozen=True)
class _Pilot:
    """The newest calibration of a judge: its record, and how many cases it judged there."""

    calibration: JudgeCalibration
    n_judged: int


def judge_needs(registry: Registry, gate: GateConfig, folder: Path, assumed: Assumptions) -> Iterator[Needed]:
    """Votes where all cases of the suite are judged, and judged cases where as many are rated as the gate asks for.

    Nothing where the gate has no judge, or one that only informs. `folder` is that of the gate's file.
    """
    rules = gate.judge
    if rules is None or rules.calibrated_on is None:
        return
    pilot = _pilot(registry, rules.judge(folder).digest)
    won = assumed.win_rate if rules.win_rate.kind == "superior" else 50.0
    whose = f"true win rate {won:g} %" if won != 50 else "equal systems"
    n_cases = _n_cases(registry, folder / gate.files[rules.suite or gate.first], pilot)
    if pilot is None and assumed.correlation is None:
        lacking = (
            "needs a judge calibrated on a pilot's votes (`llmops eval judge --campaign`), or --correlation"
        )
        yield _needed(rules, won, "votes", (None, dict.fromkeys(map(_key, POWERS)), lacking))
        return
    planned, source = _planned(rules, gate.level, assumed, pilot, won)
    basis = f"{source}, {whose}, {100 * planned.law[1].sum():.0f} % ties"
    sd = 100 * _sd(planned)
    if n_cases is not None:
        votes = {_key(power): votes_for(planned, n_cases, power) for power in POWERS}
        yield _needed(rules, won, "votes", (n_cases, votes, f"{basis}, {n_cases} judged cases"), sd)
    cases = {_key(power): cases_for(planned, rules.min_items, power) for power in POWERS}
    yield _needed(rules, won, "judged cases", (n_cases, cases, f"{basis}, {rules.min_items} votes"), sd)


def _key(power: float) -> str:
    return f"{power:g}"


def _needed(
    rules: JudgeRules,
    won: float,
    unit: str,
    found: tuple[int | None, dict[str, int | None], str],
    sd: float = 0.0,
) -> Needed:
    n_now, needed, basis = found
    now = n_now if unit == "judged cases" else None
    return Needed(
        "judge_win_rate",
        rules.win_rate.kind,
        rules.win_rate.threshold,
        won - 50,
        sd,
        unit,
        now,
        needed,
        basis,
    )


def _planned(
    rules: JudgeRules, level: float, assumed: Assumptions, pilot: _Pilot | None, won: float
) -> tuple[JudgePlan, str]:
    """The plan, and where what is known of the judge is from; a correlation that is given comes first."""
    threshold = rules.win_rate.threshold / 100
    if assumed.correlation is not None or pilot is None:
        law = law_with(assumed.correlation or 0.0, assumed.ties_frac, won / 100)
        return JudgePlan(law, threshold, level), f"judge's correlation {assumed.correlation or 0.0:g}"
    table = pilot.calibration.confusion
    said = np.array([[table[people][judge] for judge in LOSS_TO_WIN] for people in LOSS_TO_WIN], dtype=float)
    planned = JudgePlan(law_of(said, assumed.ties_frac, won / 100), threshold, level)
    return (
        planned,
        f"judge's correlation {planned.correlation:.2f} on {pilot.calibration.n_rated} rated cases",
    )


def _sd(planned: JudgePlan) -> float:
    people, values = planned.law.sum(axis=1), np.array([0.0, 0.5, 1.0])
    return math.sqrt(float(people @ (values - people @ values) ** 2))


def _pilot(registry: Registry, judge: str) -> _Pilot | None:
    """The newest calibration of the judge with this digest."""
    for event in reversed(registry.ledger.events("judge.calibrated")):
        judged = registry.store.get_record(JudgementSet, str(event.body["judgements"]))
        if judged.judge_digest == judge:
            found = registry.store.get_record(JudgeCalibration, str(event.body["calibration"]))
            return _Pilot(found, judged.n_judged)
    return None


def _n_cases(registry: Registry, suite: Path, pilot: _Pilot | None) -> int | None:
    """Cases a judge would be asked about: as many as in the pilot, else the suite's; None where it cannot be read."""
    if pilot is not None:
        return pilot.n_judged
    try:
        return len(load_suite(suite, registry).cases)
    except LlmopsError:
        return None
