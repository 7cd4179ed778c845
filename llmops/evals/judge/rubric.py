"""What a rubric judge's scores come to: each question's mean and share of passes by system, and paired differences.

An answer's score is the mean over its repeats. Shapes: N cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmops import stats
from llmops.evals.judge.config import Question, RubricConfig
from llmops.evals.judge.pairwise import figure, share_interval
from llmops.records import Figure, Judgement
from llmops.stats import Labels


@dataclass(frozen=True, eq=False)
class How:
    """The level of each bound, and the cluster of each case (None: cases are independent)."""

    level: float
    clusters: Labels | None = None


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
    config: RubricConfig, cases: Sequence[Scored], systems: Sequence[str], how: How
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
            figures += _of_system(question, name, scores[name], how)
        if len(systems) == 2:
            ours, theirs = (scores[name] for name in systems)
            difference = stats.paired_t(theirs, ours, how.level, how.clusters)
            figures.append(figure(f"{question.id} difference", difference))
        if config.repeats > 1:
            agree = [case.agrees(question.id) for case in cases]
            share = stats.proportion_interval(agree, how.level, how.clusters).scaled(100)
            figures.append(figure(f"{question.id} same each time", share))
    return tuple(figures)


def _of_system(question: Question, name: str, scores: Sequence[float], how: How) -> list[Figure]:
    found = [figure(question.id, stats.mean_interval(scores, how.level, how.clusters), system=name)]
    if question.pass_mark is not None:
        passed = [float(score >= question.pass_mark) for score in scores]
        share = share_interval(passed, how.level, how.clusters).scaled(100)
        found.append(figure(f"{question.id} passes", share, system=name))
    return found
