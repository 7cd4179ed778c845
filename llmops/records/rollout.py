"""Rollouts: what part of a public name's traffic goes elsewhere than to its champion, and what is watched meanwhile.

Also the votes of live users as the canary's controller reads them, and the evidence on which it acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from llmops.schema import Record

RolloutKind = Literal["canary", "ab", "shadow", "fallback", "cascade"]
CHAMPION = "champion"
"""The arm that a name's champion answers as."""


@dataclass(frozen=True)
class RolloutArm:
    """One target beside the champion: its name in logs and headers, its model (digest) and its share of the traffic.

    The share of a canary is that of its last step; shadow, fallback and cascade have none. `decision` is the passing
    decision that the model stands on; None for a shadow, for the base, and where the rollout carries a reason instead.
    """

    name: str
    model: str
    weight: float = 0.0
    decision: str | None = None


@dataclass(frozen=True)
class VoteRule:
    """The sequential test on live votes, declared before the first: one look a step, and what it must show.

    `looks` are rising numbers of compared votes; the win rate's lower bound must lie above 0.5 - margin to go up, and
    its upper bound below that aborts. `alpha` is the one-sided error of all looks together.
    """

    looks: tuple[int, ...]
    margin: float
    alpha: float


@dataclass(frozen=True)
class SloRule:
    """What a canary must hold in every window of `min_requests` answers, the champion having had as many meanwhile.

    Breached: more than `max_error_share` failed, or more than 5 % waited longer than `ttft_p95_ms` for the first token,
    beyond chance (99 %) and more often than under the champion.
    """

    min_requests: int
    max_error_share: float
    ttft_p95_ms: float | None


@dataclass(frozen=True)
class ShadowRule:
    """When a request is also asked of the shadow: sampled, while the engine has little to do, few at a time."""

    sample: float
    max_running: int
    max_busy: int  # requests under way, above which no shadow is started


@dataclass(frozen=True)
class CascadeRule:
    """When the first, cheaper model's answer is enough; otherwise the champion is asked.

    Prompts of more than `max_characters` go to the champion at once; an answer is enough if the mean log-probability of
    its tokens is at least `min_mean_logprob` (natural log; None: every answer is).
    """

    max_characters: int | None
    min_mean_logprob: float | None


@dataclass(frozen=True)
class Rollout(Record):
    """A request to send part of a name's traffic elsewhere, bound to its evidence and to the ledger's head."""

    schema: ClassVar[str] = "llmops.rollout/1"
    public_name: str
    kind: RolloutKind
    arms: tuple[RolloutArm, ...]
    champion: str  # adapter digest of what the name stood for
    steps: tuple[float, ...]  # a canary's shares of the traffic, rising; empty for the other kinds
    votes: VoteRule | None
    slo: SloRule | None
    shadow: ShadowRule | None
    cascade: CascadeRule | None
    reason: str | None  # why arms without a decision may answer
    requested_by: str
    ledger_seq: int
    ledger_head: str
    created_at: str


@dataclass(frozen=True)
class VoteFigures:
    """What the votes of one look come to: the win rate over the champion between its bounds."""

    look: int  # from 0
    n_votes: int
    n_wins: int
    n_losses: int
    win_rate: float
    low: float
    high: float
    level: float
    threshold: float
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    method: str


@dataclass(frozen=True)
class ArmFigures:
    """What one arm did in a window: answers, failures, streams, and how many of these were slow to begin."""

    arm: str
    n_requests: int
    n_errors: int
    n_streams: int
    n_slow: int
    ttft_p95_ms: float | None


@dataclass(frozen=True)
class RolloutEvidence(Record):
    """Why the controller raised a canary's share, found it ready, or aborted it."""

    schema: ClassVar[str] = "llmops.rollout_evidence/1"
    rollout: str
    step: int  # from 0, before the action
    action: Literal["raise", "ready", "abort"]
    reason: str
    votes: VoteFigures | None
    arms: tuple[ArmFigures, ...]
    created_at: str


@dataclass(frozen=True)
class LiveVote:
    """What one user said about an answer that a public name gave, or about two of them.

    `model` is the digest that gave the answer; `worth` is 1 where it was liked or won, 0 where it was disliked or lost,
    between them otherwise. `against` is the digest of the other answer, None where one answer was judged alone.
    `rater` tells users apart and is None where nobody said who asked.
    """

    number: int  # rises with time
    model: str
    worth: float
    rater: str | None = None
    against: str | None = None


class LiveVotes(Protocol):
    """Where live votes come from."""

    def votes(self, public_name: str, since: str) -> Sequence[LiveVote]:
        """The votes on answers of `public_name` that were given at `since` (RFC 3339, UTC) or later, by number.

        Each user's newest word about an answer counts; shadow answers nobody saw are never among them. Called in a
        thread, and may read a database.
        """
        ...
