"""What a gate's file asks of human ratings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class WinsAsOften(BaseModel):
    """The candidate may win less often than half by less than a margin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["non_inferior"]
    margin: float = Field(gt=0, lt=50)
    """Points of win rate below 50 %."""

    @property
    def threshold(self) -> float:
        """What the whole interval of win rate - 50 must lie above."""
        return -self.margin


class WinsMore(BaseModel):
    """The candidate must win more than half of the items, by more than `by`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["superior"]
    by: float = Field(default=0.0, ge=0, lt=50)
    """Points of win rate above 50 %."""

    @property
    def threshold(self) -> float:
        """What the whole interval of win rate - 50 must lie above."""
        return self.by


class Agreement(BaseModel):
    """How much raters must agree where several rated an item; less makes the votes no evidence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_least: float = Field(gt=-1, lt=1)
    """Krippendorff's alpha (nominal) over the items with two votes or more: 0 is chance, 1 is full agreement."""
    min_items: int = Field(default=10, ge=2)
    """Fewer items with two votes cannot tell."""


class RatingRules(BaseModel):
    """What a gate asks of human ratings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    campaign: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Name of a campaign with purpose gate; its newest one about the two reports that are decided on counts."""
    suite: str | None = None
    """The suite whose answers people compare, by its name in the gate; the first when left out."""
    min_items: int = Field(default=40, ge=2)
    """Fewer rated items decide nothing."""
    min_raters: int = Field(default=1, ge=1)
    """Fewer people are no evidence about people."""
    win_rate: Annotated[WinsAsOften | WinsMore, Field(discriminator="kind")]
    """What the candidate's win rate must be."""
    max_both_bad: float | None = Field(default=None, gt=0, lt=100)
    """Most of the rated items, in %, on which both answers may be bad; not asked when left out."""
    agreement: Agreement | None = None
    """What raters must agree on; not asked when left out."""
    looks: tuple[int, ...] = ()
    """Numbers of rated items at which votes may be counted before all are in (O'Brien and Fleming's spending)."""

    @model_validator(mode="after")
    def _looks_rise(self) -> RatingRules:
        if list(self.looks) != sorted(set(self.looks)) or (self.looks and self.looks[0] < 2):
            raise ValueError(
                f"looks {list(self.looks)} do not rise from 2 on; write them in order, such as [50, 100]"
            )
        if self.looks and self.looks[-1] < self.min_items:
            raise ValueError(
                f"looks end at {self.looks[-1]} items and min_items is {self.min_items}: nothing could be decided"
            )
        return self
