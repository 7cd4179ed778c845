"""What the `capture:` block of a serving profile says: how much is kept, how it is protected, and for how long.

Reads nothing.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Encryption = Literal["aes-gcm", "none"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RedactRule(_Settings):
    """A regular expression whose matches are replaced by its name in angle brackets, before anything is written."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$")
    """What stands in the place of a match: `ticket` writes <ticket>."""
    pattern: str
    """The expression, as Python writes them; `(?i)` at its beginning ignores letter case."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        import regex

        try:
            compiled = regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"is no regular expression ({error})") from None
        if compiled.search(""):
            raise ValueError("matches the empty text, which stands everywhere")
        return pattern


class CaptureSettings(_Settings):
    """What is kept of requests and answers. Which model answered is kept for every response, whatever stands here."""

    sample_frac: float = Field(0.0, ge=0, le=1)
    """Share of the requests whose prompt and answer are kept for rating; 0 keeps none."""
    encryption: Encryption = "aes-gcm"
    """Texts are encrypted with the key in LLMOPS_CAPTURE_KEY; `none` is accepted on a loopback address alone."""
    redact: tuple[RedactRule, ...] = ()
    """Rules that take things out of every text, in their order."""
    personal_data: Literal["auto", "on", "off"] = "auto"
    """presidio's recognisers beside the rules (extra `pii`): e-mail addresses, telephone and card numbers ... `auto`:
    where they are installed."""
    keep_days: int = Field(30, ge=1)
    """Days after which texts are deleted."""
    keep_lineage_days: int = Field(365, ge=1)
    """Days after which it is forgotten which model gave a response, and its feedback with it; texts go no later."""
    max_text_bytes: int = Field(1024 * 1024, ge=1024)
    """Longest prompt and answer together that are kept; longer ones are counted as dropped."""
    max_waiting_bytes: int = Field(64 * 1024 * 1024, ge=1024 * 1024)
    """Texts that wait to be written; more are counted as dropped, and nobody waits for them."""

    @property
    def on(self) -> bool:
        """Whether texts are sampled."""
        return self.sample_frac > 0
