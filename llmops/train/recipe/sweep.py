"""What `llmops sweep` may change in a recipe, and what it looks for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmops.train.recipe.settings import Settings


class Range(Settings):
    """The values one setting may take: `choices`, or everything from `low` to `high`."""

    choices: tuple[Any, ...] | None = None
    """Values to choose from."""
    low: int | float | None = None
    """Least value; whole numbers at both ends give whole numbers."""
    high: int | float | None = None
    """Greatest value."""
    log: bool = False
    """Draw on a logarithmic scale, as for learning rates."""
    step: int | float | None = Field(None, gt=0)
    """Distance between values; unset: any value, or every whole number."""

    @model_validator(mode="after")
    def _one_way(self) -> Range:
        ends = (self.low, self.high)
        if (self.choices is None) == (ends == (None, None)):
            raise ValueError("give choices, or low and high")
        if self.choices is not None:
            if not self.choices or self.log or self.step:
                raise ValueError("choices must not be empty, and have neither log nor step")
            return self
        if self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"low {self.low} must be under high {self.high}")
        if self.log and (self.low <= 0 or self.step):
            raise ValueError("log needs a low over 0, and has no step")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to try a recipe with before the first trial: all choices, or both ends."""
        return self.choices if self.choices is not None else (self.low, self.high)


class Sweep(Settings):
    """A search for the settings that give the best figure; the rest of the recipe stays as it is."""

    ranges: dict[str, Range] = Field(min_length=1)
    """By the setting's dotted name, such as `learning_rate` or `lora.r`."""
    metric: str = "held_out_loss"
    """The figure of a finished run to go by; `llmops adapter show` lists them."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Which way is better."""
    n_trials: int = Field(12, ge=1)
    """Runs that end with a figure. `llmops sweep --trials N` goes on with the same search up to N."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """tpe: learns from finished trials (Bergstra 2011). random: does not. grid: every combination of choices, once."""

    @field_validator("ranges")
    @classmethod
    def _not_itself(cls, value: dict[str, Range]) -> dict[str, Range]:
        if bad := [name for name in value if name.partition(".")[0] in ("sweep", "name")]:
            raise ValueError(f"{bad[0]} cannot be searched over; leave it out")
        return value

    @model_validator(mode="after")
    def _finite(self) -> Sweep:
        if self.sampler == "grid":
            for name, values in self.ranges.items():
                whole = isinstance(values.low, int) and isinstance(values.high, int)
                if values.choices is None and values.step is None and not whole:
                    raise ValueError(f"grid needs choices or a step for {name}")
        return self
