"""How answers are generated, as suites and campaigns spell it and every request carries it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Decoding(BaseModel):
    """How answers are generated: always explicit, never an engine's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(ge=0, le=2)
    """0 takes the likeliest token each time."""
    max_tokens: int = Field(ge=1)
    """Tokens after which an answer is cut."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Share of probability that is sampled from."""
    seed: int = 0
    """Seed of sampling, sent with every request."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, besides the prompt contract's end tokens."""
