"""Rows that people's answers became, sifted before anything is learnt from them: copies, contradictions, personal data.

Every row that is not kept is named with its reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmops.data.quality.config import Pii
from llmops.data.quality.pii import INSTALL, installed, redact_row, spans_of
from llmops.data.quality.texts import prompt_of, spelling, texts_of
from llmops.errors import BadRequest, ConfigError
from llmops.feedback.forms import Made
from llmops.records import Labelled, Preference
from llmops.schema import digest_of, short

PiiAction = Literal["drop", "redact", "refuse", "off"]
NOT_SCANNED = "personal data: not looked for"


@dataclass(frozen=True)
class Candidate:
    """A row, the item it is from, and the ratings it rests on."""

    row: Made
    item: str
    ratings: tuple[str, ...]


@dataclass(frozen=True)
class Lost:
    """A row that is not kept: its item, where its prompt stood, and why."""

    item: str
    source: str
    reason: str


def sift(candidates: Sequence[Candidate], action: PiiAction) -> tuple[list[Candidate], list[Lost]]:
    """The rows that are kept, in their order, and the others.

    Raises:
        BadRequest: personal data was found and `action` is refuse.
        ConfigError: personal data is to be redacted or refused, and what finds it is not installed.
    """
    lost: list[Lost] = []
    kept = _without_contradictions(candidates, lost)
    kept = _without_copies(kept, lost)
    return _without_personal_data(kept, action, lost), lost


def is_scanned(action: PiiAction) -> bool:
    """Whether personal data is looked for: without the extra `pii` it cannot be, and exports say so."""
    return action != "off" and installed()


def _without_contradictions(candidates: Sequence[Candidate], lost: list[Lost]) -> list[Candidate]:
    """Two items that say the opposite of the same answers say nothing."""
    said: dict[str, set[str]] = defaultdict(set)
    for candidate in candidates:
        about, says = _claim(candidate.row)
        if about:
            said[about].add(says)
    kept = []
    for candidate in candidates:
        about, _ = _claim(candidate.row)
        if about and len(said[about]) > 1:
            reason = "contradiction: another item says the opposite"
            lost.append(Lost(candidate.item, candidate.row.source, reason))
        else:
            kept.append(candidate)
    return kept


def _claim(row: Made) -> tuple[str, str]:
    """What a row is about, and what it says of it; nothing where rows cannot contradict each other."""
    prompt = [m.spelling for m in prompt_of(row)]
    if isinstance(row, Preference):
        return digest_of([prompt, sorted((row.chosen, row.rejected))]), row.chosen
    if isinstance(row, Labelled):
        return digest_of([prompt, row.completion]), str(row.good)
    return "", ""


def _without_copies(candidates: Sequence[Candidate], lost: list[Lost]) -> list[Candidate]:
    first: dict[str, str] = {}
    kept = []
    for candidate in candidates:
        key = digest_of(spelling(candidate.row))
        if key in first:
            reason = f"duplicate: item {short(first[key])} says the same"
            lost.append(Lost(candidate.item, candidate.row.source, reason))
        else:
            first[key] = candidate.item
            kept.append(candidate)
    return kept


def _without_personal_data(
    candidates: Sequence[Candidate], action: PiiAction, lost: list[Lost]
) -> list[Candidate]:
    if action == "off" or (action == "drop" and not installed()):
        return list(candidates)
    if not installed():
        raise ConfigError(f"--pii {action}: needs presidio-analyzer; {INSTALL}, or give --pii off")
    settings, kept = Pii(), []
    for candidate in candidates:
        found = Counter(span.entity for text in texts_of(candidate.row) for span in spans_of(text, settings))
        if not found:
            kept.append(candidate)
            continue
        what = ", ".join(f"{n} {entity}" for entity, n in sorted(found.items()))
        if action == "refuse":
            raise BadRequest(
                f"item {short(candidate.item)} ({candidate.row.source}): holds {what}; give --pii drop or redact"
            )
        if action == "redact":
            kept.append(Candidate(redact_row(candidate.row, settings), candidate.item, candidate.ratings))
        else:
            lost.append(Lost(candidate.item, candidate.row.source, f"pii: {what}"))
    return kept
