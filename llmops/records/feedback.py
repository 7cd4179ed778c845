"""What people are asked, what they answer, and what their answers become: campaign, item, rating, preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmops.records.data import Message
from llmops.records.models import EngineSignature
from llmops.schema import JsonDict, Record, digest_of

Purpose = Literal["gate", "train"]
Choice = Literal["left", "right", "tie", "both_bad", "skip"]


@dataclass(frozen=True)
class Item:
    """A prompt with two answers, `answers[i]` by `Campaign.systems[i]`; which stands left is drawn when it is shown.

    `group` and `source` are the prompt's, as in `Row`.
    """

    messages: tuple[Message, ...]
    answers: tuple[str, str]
    group: str
    source: str

    @property
    def digest(self) -> str:
        """Digest of prompt and answers: what a rating is about."""
        prompt = [m.spelling for m in self.messages]
        return digest_of({"messages": prompt, "answers": list(self.answers)})


@dataclass(frozen=True)
class Campaign(Record):
    """What is put before raters: items frozen by content, and where their answers come from.

    `purpose: gate` compares the candidate (`systems[0]`) with the baseline (`systems[1]`) on the answers of their two
    reports; `purpose: train` pairs answers to prompts of the rate pool and may become preferences.
    """

    schema: ClassVar[str] = "llmops.campaign/1"
    name: str
    purpose: Purpose
    question: str  # what raters are asked
    systems: tuple[str, str]  # digests of the models that answered; equal when one was sampled twice
    reports: tuple[str, str] | None  # gate: report digests in the order of `systems`
    dataset: str | None  # DatasetSnapshot digest of the prompts; None for a suite's file cases
    base: str
    prompt_contract: str  # of systems[0]
    engine: EngineSignature
    decoding: JsonDict
    items: str  # digest of the stored files (kind `items`)
    n_items: int
    n_dropped: dict[str, int]  # by reason
    votes_per_item: int
    created_at: str


@dataclass(frozen=True)
class Rating:
    """One person's answer about one item: a row of the database, whose digest is in the ledger.

    `left` says which of the item's answers stood on the left (0 or 1); `supersedes` is the same rater's earlier rating
    of the item. `number` counts all ratings of the workspace from 1: the page's "saved #n".
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

    @property
    def digest(self) -> str:
        """Digest over every field."""
        return digest_of(self.__dict__)

    @property
    def preferred(self) -> int | None:
        """Which of the item's answers was chosen; None for a tie, both bad, or a skip."""
        if self.choice not in ("left", "right"):
            return None
        return self.left if self.choice == "left" else 1 - self.left


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
