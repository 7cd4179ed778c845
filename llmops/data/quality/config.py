"""What the `quality:` block of a recipe or a data file says: which checks run, and what a finding does.

Reads nothing. Every check is a block of its own, or its action alone: `pii: refuse` is `pii: {action: refuse}`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Action = Literal["report", "drop", "refuse", "off"]
Entity = Literal["EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS"]

CHECKS = ("pii", "duplicates", "near_duplicates", "language", "length", "contamination")
"""The checks by name, in the order they run: what is redacted may be a copy of another row afterwards."""


class Check(BaseModel):
    """Base of the checks: unknown names are refused, values never change, and a word alone is the action."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _action_alone(cls, value: Any) -> Any:
        # YAML 1.1 reads the bare word `off` as false.
        if value is False:
            value = "off"
        if isinstance(value, dict) and value.get("action") is False:
            value = value | {"action": "off"}
        return {"action": value} if isinstance(value, str) else value


class Duplicates(Check):
    """Rows that repeat an earlier one, character for character."""

    action: Action = "report"
    """What a finding does; drop keeps the first of equal rows."""


class NearDuplicates(Check):
    """Rows whose words are nearly an earlier row's: Jaccard similarity of their sets of `n_words` words in a row.

    Candidates come from MinHash with locality-sensitive hashing (Broder 1997) and are then compared exactly, so a row
    that is named has the similarity that is named. Rows are compared without their system turns.
    """

    action: Action = "off"
    """What a finding does; drop keeps the first of similar rows."""
    min_similarity: float = Field(0.8, ge=0.5, le=1)
    """Similarity from which two rows count as near duplicates (0.8: Lee 2022, arXiv:2107.06499)."""
    n_words: int = Field(5, ge=1, le=13)
    """Length of a shingle, in words; a shorter row is one shingle."""
    template_frac: float = Field(0.2, gt=0, le=1)
    """Shingles that stand in more than this fraction of the rows, and in at least 20, are taken for a template's and
    not compared; 1 compares all."""


class Pii(Check):
    """Personal data that has a form of its own, found by presidio's recognisers (extra `pii`). Names are not found."""

    action: Action | Literal["redact"] = "off"
    """What a finding does; redact puts the entity's name in its place, as in <EMAIL_ADDRESS>, and keeps the row."""
    entities: tuple[Entity, ...] = Field(
        ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS"), min_length=1
    )
    """What is looked for. Of IP addresses only those that are reachable from outside count."""
    min_score: float = Field(0.4, ge=0, le=1)
    """presidio's confidence below which a finding does not count: 1 has passed a checksum or is a known domain, 0.4 has
    the form of a valid telephone number."""
    phone_regions: tuple[str, ...] = Field(("US", "GB", "DE", "FR", "IL", "IN", "CA", "BR"), min_length=1)
    """Regions whose national telephone numbers are known; international ones (+...) always are."""


class Language(Check):
    """Rows whose answers are in a language that is not expected, as py3langid tells it (97 languages)."""

    action: Action = "off"
    """What a finding does."""
    expected: tuple[str, ...] = ()
    """ISO 639-1 codes, such as en; none: the most common language of the rows, for a report alone."""
    min_probability: float = Field(0.95, ge=0.5, le=1)
    """How sure the other language must be."""
    min_characters: int = Field(40, ge=1)
    """Shorter answers are not judged: their language cannot be told."""

    @model_validator(mode="after")
    def _expected_to_act(self) -> Language:
        if self.action in ("drop", "refuse") and not self.expected:
            raise ValueError(f"action {self.action} needs expected: name the languages, such as [en]")
        return self


class Length(Check):
    """The distribution of rows' lengths, and the rows outside of limits."""

    action: Action = "report"
    """What a row outside of the limits does."""
    min_characters: int = Field(0, ge=0)
    """Fewest characters of a row, all turns together."""
    max_characters: int | None = Field(None, ge=1)
    """Most characters of a row."""
    min_tokens: int = Field(0, ge=0)
    """Fewest tokens of a row's text, without the chat template; only where a tokenizer is known (recipes)."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of a row's text, without the chat template; only where a tokenizer is known (recipes)."""

    @property
    def limits_tokens(self) -> bool:
        """Whether tokens have to be counted."""
        return self.min_tokens > 0 or self.max_tokens is not None


class Contamination(Check):
    """Training rows that hold a case of a suite in `evals/suites/`: what they teach, the suite would then measure.

    A case counts as held by a row when at least `min_overlap_frac` of the case's n-grams of words stand in that one
    row. Words are lower-case without punctuation and n is 13 or, for short cases, half their length but at least 8
    (Brown 2020, arXiv:2005.14165, appendix C); the fraction is PaLM's (Chowdhery 2022, arXiv:2204.02311, section 8).
    A case under 8 words counts where a row's whole prompt is the same words.
    """

    action: Action = "refuse"
    """What a finding does. report trains on such rows all the same, and the run's record says so."""
    min_overlap_frac: float = Field(0.7, gt=0, le=1)
    """Fraction of a case's n-grams in one row from which the row holds the case."""
    max_n: int = Field(13, ge=8, le=50)
    """Words in an n-gram of a long case."""
    template_frac: float = Field(0.1, gt=0, le=1)
    """n-grams that stand in more than this fraction of a suite's cases, and in at least 3, are taken for the prompt's
    template and do not count; 1 counts all."""


class Quality(Check):
    """The checks of a dataset's or a recipe's rows: each is off, reports, drops what it finds, or refuses it all."""

    duplicates: Duplicates = Duplicates()
    """Exact copies."""
    near_duplicates: NearDuplicates = NearDuplicates()
    """Copies with small changes."""
    pii: Pii = Pii()
    """Personal data."""
    language: Language = Language()
    """Unexpected languages."""
    length: Length = Length()
    """Lengths."""
    contamination: Contamination = Contamination()
    """Cases of suites among the rows."""

    def action_of(self, check: str) -> str:
        """What a finding of this check does."""
        action: str = getattr(self, check).action
        return action

    def only(self, *checks: str) -> Quality:
        """The same settings with all other checks off."""
        return self._with({name: "off" for name in CHECKS if name not in checks})

    def reporting(self) -> Quality:
        """The same settings with every check that is off set to report."""
        return self._with({name: "report" for name in CHECKS if self.action_of(name) == "off"})

    def _with(self, actions: dict[str, str]) -> Quality:
        changed = {
            name: getattr(self, name).model_copy(update={"action": action})
            for name, action in actions.items()
        }
        return self.model_copy(update=changed)
