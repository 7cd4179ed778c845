"""What people are asked, what they answer, and what their answers become: campaign, item, rating, preferences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from llmops.records.data import Message
from llmops.records.models import EngineSignature
from llmops.schema import JsonDict, Record, digest_of

Purpose = Literal["gate", "train"]
CampaignKind = Literal["compare", "rate", "edit"]
"""What people do with an item: choose between two answers, score one by the rubric, or correct one."""
Origin = Literal["captures", "feedback", "typed", "argilla", "label_studio"]
"""Where items come from that are neither two reports' nor sampled."""
Choice = Literal["left", "right", "tie", "both_bad", "rated", "edited", "kept", "skip", "undone"]
"""What a rater did. `rated` carries scores, `edited` the corrected text, `kept` says that an answer needs no edit.

`undone` takes the rating back that it supersedes: the item counts as unanswered again.
"""
CHOICES_OF: dict[CampaignKind, tuple[Choice, ...]] = {
    "compare": ("left", "right", "tie", "both_bad", "skip", "undone"),
    "rate": ("rated", "skip", "undone"),
    "edit": ("edited", "kept", "skip", "undone"),
}


@dataclass(frozen=True)
class Item:
    """A prompt with its answers: two to compare, one to rate or edit. `group` and `source` are the prompt's.

    `answers[i]` is by `systems[i]`, or by `Campaign.systems[i]` where the item names none; which stands left is drawn
    when it is shown. A gold item has a `known` answer (a vote's word, or scores as canonical JSON); a repeat asks
    `repeat_of` once more with its sides swapped: neither counts as evidence. `votes` is how many people rate it where
    that is not the campaign's number.
    """

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    group: str
    source: str
    systems: tuple[str, ...] = ()
    responses: tuple[str, ...] = ()  # ids of the served answers
    known: str | None = None
    repeat_of: str | None = None
    votes: int | None = None

    @property
    def digest(self) -> str:
        """Digest of prompt and answers, and of what tells equal ones apart: what a rating is about."""
        told: JsonDict = {"messages": [m.spelling for m in self.messages], "answers": list(self.answers)}
        if self.responses:
            told["responses"] = list(self.responses)
        if self.repeat_of is not None:
            told["repeat_of"] = self.repeat_of
        return digest_of(told)

    @property
    def counts(self) -> bool:
        """Whether ratings of it are evidence; those of gold items and repeats only say something of the rater."""
        return self.known is None and self.repeat_of is None


@dataclass(frozen=True)
class VotePlan:
    """What the gate that a campaign was opened for asks of its votes: by this the next item is chosen."""

    looks: tuple[int, ...]  # numbers of items with all their votes; none: when all are in
    min_items: int
    min_raters: int
    agreement_items: (
        int | None
    )  # items with two votes that agreement is computed on; None when it is not asked
    kind: str  # non_inferior | superior
    threshold: float  # points of win rate from even
    level: float
    power: float


@dataclass(frozen=True)
class Campaign(Record):
    """What is put before raters: items frozen by content, and where their answers come from.

    `purpose: gate` compares the candidate (`systems[0]`) with the baseline (`systems[1]`) on the answers of their two
    reports; `purpose: train` may become training data.
    """

    schema: ClassVar[str] = "llmops.campaign/1"
    later: ClassVar[tuple[str, ...]] = (
        "kind",
        "origin",
        "rubric",
        "plan",
        "n_gold",
        "n_repeats",
        "gold_every",
        "licence",
    )
    name: str
    purpose: Purpose
    question: str  # what raters are asked
    systems: tuple[str, ...]  # digests of the models that answered; equal when one was sampled twice
    reports: tuple[str, str] | None  # gate: report digests in the order of `systems`
    dataset: str | None  # DatasetSnapshot digest of the prompts; None for a suite's file cases
    base: str
    prompt_contract: str  # of systems[0]
    engine: EngineSignature | None  # None when answers were brought from elsewhere
    decoding: JsonDict
    items: str  # digest of the stored files (kind `items`)
    n_items: int  # those that count: neither gold nor repeats
    n_dropped: dict[str, int]  # by reason
    votes_per_item: int
    created_at: str
    kind: CampaignKind = "compare"
    origin: Origin | None = None
    rubric: str | None = None  # digest of the rubric's file
    plan: VotePlan | None = None  # gate campaigns
    n_gold: int = 0
    n_repeats: int = 0
    gold_every: int = 0  # one item in so many is a gold one
    licence: str | None = None  # of answers that were brought from elsewhere


@dataclass(frozen=True)
class Rating:
    """One person's answer about one item: a row of the database, whose digest is in the ledger.

    `left` says which of the item's answers stood on the left (0 or 1); `supersedes` is the same rater's earlier rating
    of the item. `number` counts all ratings of the workspace from 1: the page's "saved #n". `note` and `edit` are
    salted digests of texts that lie in `rating_texts` and can be deleted; `pins` is the digest of `Pins`.
    """

    number: int
    campaign: str  # digest
    item: str  # digest
    rater: str
    showing: str
    left: int
    choice: Choice
    at: str
    supersedes: str | None = None
    tags: tuple[str, ...] = ()
    scores: dict[str, int] = field(default_factory=dict)  # question of the rubric -> value
    note: str | None = None
    edit: str | None = None
    pins: str | None = None
    dwell_ms: int | None = None  # how long the item was in view, where the page says

    @property
    def digest(self) -> str:
        """Digest over every field; those that came after `supersedes` only where they say something."""
        told = {
            k: v for k, v in self.__dict__.items() if k not in LATER_IN_RATINGS or v not in (None, (), {})
        }
        return digest_of(told)

    @property
    def preferred(self) -> int | None:
        """Which of the item's answers was chosen; None for everything that is no choice between two."""
        if self.choice not in ("left", "right"):
            return None
        return self.left if self.choice == "left" else 1 - self.left


LATER_IN_RATINGS = ("tags", "scores", "note", "edit", "pins", "dwell_ms")


@dataclass(frozen=True)
class Pins:
    """What a rating is about, whatever becomes of the campaign: each rating carries the digest of it."""

    systems: tuple[str, ...]  # digests of the models, in the order of the item's answers
    evidence: tuple[str, ...]  # digests of their reports, or ids of the served responses
    prompt_contract: str
    rubric: str | None

    @classmethod
    def of(cls, campaign: Campaign, item: Item) -> Pins:
        """Of an item of a campaign."""
        return cls(
            item.systems or campaign.systems,
            item.responses or campaign.reports or (),
            campaign.prompt_contract,
            campaign.rubric,
        )

    @property
    def digest(self) -> str:
        """What ratings and the ledger carry."""
        return digest_of(
            {
                "systems": list(self.systems),
                "evidence": list(self.evidence),
                "prompt_contract": self.prompt_contract,
                "rubric": self.rubric,
            }
        )


@dataclass(frozen=True)
class RatingEvidence:
    """The votes a decision counted, frozen: `votes` is the digest of the stored file (kind `votes`)."""

    campaign: str  # digest
    votes: str
    n_items: int  # shown to raters
    n_rated: int  # with at least one vote
    n_votes: int
    n_raters: int
    outcomes: dict[str, int]  # first, second, tie, both_bad, split


@dataclass(frozen=True)
class PreferenceSnapshot(Record):
    """Preferences frozen by content: pairs.jsonl and dropped.jsonl in the store under kind `preferences`.

    Those that a recipe read from files have no campaign and no time: equal files are equal snapshots.
    """

    schema: ClassVar[str] = "llmops.preferences/1"
    name: str
    artifact: str  # digest of the stored files
    campaign: str | None  # digest
    dataset: str | None  # DatasetSnapshot digest the prompts come from
    n_pairs: int
    n_dropped: dict[str, int]  # by reason
    rule: str  # how votes became pairs, in words
    licence: str
    created_at: str | None


@dataclass(frozen=True)
class Preference:
    """One pair to learn from: the answer people preferred and the one they did not.

    `ratings` are the digests of the votes behind it; `item` is the item's digest.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    group: str
    source: str
    item: str
    ratings: tuple[str, ...]
