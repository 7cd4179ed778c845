"""What a rubric judge's scores come to: each question's mean and share of passes by system, and paired differences.

An answer's score is the mean over its repeats. Shapes: N cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmops import stats
from llmops.evals.judge.config import RubricConfig
from llmops.evals.judge.pairwise import figure, share_interval
from llmops.records import Figure, Judgement


@dataclass(frozen=True)
class Scored:
    """A case whose every answer was judged every time: `by_system[name]` holds its repeats."""

    case: str
    by_system: Mapping[str, tuple[Judgement, ...]]

    def score(self, system: str, question: str) -> float:
        """The mean over the repeats."""
        return float(np.mean([judgement.scores[question] for judgement in self.by_system[system]]))

    def agrees(self, question: str) -> bool:
        """Whether all repeats gave each answer the same score."""
        return all(len({j.scores[question] for j in own}) == 1 for own in self.by_system.values())


def rubric_figures(
    config: RubricConfig, cases: Sequence[Scored], systems: Sequence[str], level: float
) -> tuple[Figure, ...]:
    """Per question and system the mean and the share that passes; the difference of the first system and the second.

    With repeats also the share of cases that got the same scores each time. None of fewer than two cases.
    """
    if len(cases) < 2:
        return ()
    figures: list[Figure] = []
    for question in config.questions:
        scores = {name: [case.score(name, question.id) for case in cases] for name in systems}
        for name in systems:
            figures.append(figure(question.id, stats.mean_interval(scores[name], level), system=name))
            if question.pass_mark is not None:
                passed = [float(score >= question.pass_mark) for score in scores[name]]
                figures.append(
                    figure(f"{question.id} passes", share_interval(passed, level).scaled(100), system=name)
                )
        if len(systems) == 2:
            ours, theirs = (scores[name] for name in systems)
            figures.append(figure(f"{question.id} difference", stats.paired_t(theirs, ours, level)))
        if config.repeats > 1:
            agree = stats.proportion_interval([case.agrees(question.id) for case in cases], level).scaled(100)
            figures.append(figure(f"{question.id} same each time", agree))
    return tuple(figures)
