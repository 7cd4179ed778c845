"""What the quality checks found in a set of rows: one result a check, worst rows first, each by file and line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmops.schema import JsonDict, Record


@dataclass(frozen=True)
class EvalText:
    """What a suite asks, as rows are compared with it: `case` is the case's digest, `source` its file and line."""

    suite: str
    case: str
    source: str
    prompt: tuple[str, ...]  # words of all turns but the system's, as `words_of` gives them
    references: tuple[str, ...]


@dataclass(frozen=True)
class Offence:
    """A row that a check found, and why, as `check: detail`. Personal data is never quoted."""

    source: str
    reason: str


@dataclass(frozen=True)
class CheckResult:
    """What one check found among the rows.

    `examples` are the worst rows, worst first, not all of them. `not_checked` says in words what could not be looked
    at; None when everything was.
    """

    action: str  # report, drop, refuse, redact
    n_found: int  # rows
    examples: tuple[Offence, ...]
    distribution: dict[str, int | float]  # what was measured over all rows; names say the unit
    not_checked: str | None = None


@dataclass(frozen=True)
class QualityReport(Record):
    """The checks of one set of rows. Checks that are off are not in `checks`."""

    schema: ClassVar[str] = "llmops.quality/1"
    rows: str  # what was checked, in words
    n_rows: int
    n_dropped: int
    n_redacted: int
    settings: JsonDict
    checks: dict[str, CheckResult]

    @property
    def refused(self) -> tuple[str, ...]:
        """The checks that found rows and are set to refuse them."""
        return tuple(name for name, c in self.checks.items() if c.action == "refuse" and c.n_found)
