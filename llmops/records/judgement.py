"""What a judge said: one judgement a showing, and the set of them about the answers of one session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmops.records.feedback import RatingEvidence
from llmops.schema import JsonDict, Record

Place = Literal["first", "second", "tie"]
"""Which of two answers, as they were shown to a judge, it takes for the better one."""


@dataclass(frozen=True)
class Judgement:
    """What a judge said to one showing of a case. `status` errored is never a verdict or a score.

    `shown` are the systems whose answers were shown, in that order: two for a comparison, one for a rubric. `prompt` is
    the digest of what was sent. `verdict` is set for comparisons, `scores` (by question) for rubrics.
    """

    case: str  # Case.digest
    shown: tuple[str, ...]
    repeat: int
    prompt: str
    status: Literal["judged", "errored"]
    verdict: Place | None
    scores: dict[str, int]
    text: str  # the judge's whole answer
    finish_reason: str | None
    format: Literal["json_schema", "text"]  # what the endpoint was asked for
    model: str | None  # as the answer names it
    answered_by: str | None  # digest in the header of llmops' own endpoint
    fingerprint: str | None  # OpenAI's system_fingerprint
    n_prompt_tokens: int
    n_completion_tokens: int
    latency_s: float
    error: str | None = None


@dataclass(frozen=True)
class Figure:
    """One number of a set of judgements between two bounds, each of which is wrong for 1 - level of samples.

    `system` says whose it is; None where it is about all of them, or about the candidate against the baseline.
    """

    name: str
    value: float
    low: float
    high: float
    level: float
    n: int
    method: str
    system: str | None = None


@dataclass(frozen=True)
class JudgementSet(Record):
    """All that one judge said about the answers of one session's reports, and what it comes to.

    `invalid` lists reasons why the set is no evidence (too many judgements errored); `notes` what a reader should know.
    """

    schema: ClassVar[str] = "llmops.judgements/1"
    judge: str  # name
    kind: Literal["pairwise", "rubric"]
    judge_digest: str  # of everything the judge's file says, its template included
    template: str  # digest of the prompt template
    endpoint: str
    model: str  # asked for
    answered_by: tuple[str, ...]  # models as the answers name them
    fingerprints: tuple[str, ...]
    decoding: JsonDict
    session: str
    suite: str
    suite_digest: str
    reports: tuple[str, ...]  # report digests; of a comparison candidate, baseline
    systems: tuple[str, ...]  # in the order of `reports`
    judgements: str  # digest of the stored files (kind `judgements`)
    n_cases: int  # all of the suite
    n_unanswered: int  # a system gave no answer
    n_same: int  # both answers read the same: not asked
    n_judged: int  # cases with every judgement they need
    n_errored: int  # cases without
    figures: tuple[Figure, ...]
    invalid: tuple[str, ...]
    notes: tuple[str, ...]
    created_at: str


@dataclass(frozen=True)
class JudgeCalibration(Record):
    """A judge held against people's votes about the same two reports.

    `confusion[people][judge]` counts the items that both judged, by outcome: first (the candidate), tie, second.
    """

    schema: ClassVar[str] = "llmops.judge_calibration/1"
    judgements: str  # JudgementSet digest
    campaign: str  # digest
    votes: str  # digest of the stored file (kind `votes`)
    n_rated: int
    n_votes: int
    n_raters: int
    weight: float  # of the judge in the calibrated win rate; 0: it helps nothing
    figures: tuple[Figure, ...]
    confusion: dict[str, dict[str, int]]
    created_at: str


@dataclass(frozen=True)
class JudgeEvidence:
    """What a decision took from a judge: its set of judgements, and the votes that calibrated it.

    `ratings` is None for a judge that only informs, or that nobody's votes have calibrated yet.
    """

    judgements: str  # JudgementSet digest
    ratings: RatingEvidence | None = None
