"""A claim: one statement of a card, and the record that it was read from by kind and digest."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmops.schema import short

SECTIONS = ("Model", "Data", "Training", "Scores", "Gate", "Releases")

_LINE = re.compile(r"- .+ \(`[^`]+`\)")


@dataclass(frozen=True)
class Claim:
    """`text` is one line; `shown` is False for what a newer record has replaced: still true, no longer told."""

    section: str
    text: str
    kind: str
    digest: str
    shown: bool = True

    @property
    def line(self) -> str:
        """The claim as it stands in a card."""
        return f"- {self.text} (`{self.kind} {short(self.digest)}`)"


def is_claim(line: str) -> bool:
    """Whether a line of a card has the form of a claim.

    >>> is_claim("- seed 0 (`lineage 0123456789ab`)"), is_claim("- trained with care")
    (True, False)
    """
    return _LINE.fullmatch(line) is not None


def one_line(text: str, longest: int = 300) -> str:
    """Text that people wrote, on one line that no Markdown or claim can be hidden in; long ones are cut.

    >>> one_line("two" + chr(10) + "lines `here`")
    "two lines 'here'"
    """
    flat = " ".join(text.split()).replace("`", "'")
    return flat if len(flat) <= longest else f"{flat[:longest]}..."
