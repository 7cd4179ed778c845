"""What a dataset's YAML file says (`data/*.yaml`). Reads nothing; paths in it are relative to the file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmops.data.quality.config import Quality
from llmops.data.sources.config import ReadSource

POOLS = ("train", "rate", "gate")

Scalar = str | int | float | bool


class BuilderSource(BaseModel):
    """Rows made by a generator function of the user's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["builder"]
    function: str = Field(pattern=r"^.+\.py::[A-Za-z_]\w*$")
    """`file.py::function`, relative to the YAML file; the file's bytes are part of the config's digest."""
    options: dict[str, Scalar] = {}
    """The function's arguments."""


class Pools(BaseModel):
    """The share of groups each pool gets; a group's pool depends on its name and the salt alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: float = Field(ge=0, le=1)
    """What adapters are trained on."""
    rate: float = Field(ge=0, le=1)
    """What people rate answers to."""
    gate: float = Field(ge=0, le=1)
    """What gates decide on; never enters training."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Pools:
        total = self.train + self.rate + self.gate
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train, rate and gate add up to {total:g}, not 1")
        return self


class Limits(BaseModel):
    """What makes a row too large to keep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_characters: int = Field(default=100_000, ge=1)
    """Characters of all turns of a conversation together."""


class DataConfig(BaseModel):
    """A dataset: where its rows come from, how they are split, how many may be dropped."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """What recipes and suites call it."""
    licence: str = Field(min_length=1)
    """SPDX identifier, or words."""
    origin: str = Field(min_length=1)
    """What the rows are built from, in words; `{python}` becomes the running Python's version."""
    source: Annotated[BuilderSource | ReadSource, Field(discriminator="kind")]
    """A builder function, files, a hub's dataset, an SQL query or an HTTP endpoint."""
    pools: Pools
    """Shares of the three pools."""
    salt: str = ""
    """Changes which groups land in which pool."""
    limits: Limits = Limits()
    """What makes a row too large."""
    quality: Quality = Quality()
    """Checks of the rows: copies, personal data, language, length, and cases of the suites among those to train on."""
    drop_budget_frac: float = Field(default=0.0, ge=0, le=1)
    """Share of the rows read that may be dropped before the build is an error."""
