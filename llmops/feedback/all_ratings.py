"""Every rating of a campaign as JSON lines, with all that it is about: `llmops feedback export --as ratings`.

Raters are r1, r2 ... in the order of their first answer. What is not told is listed with its reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from llmops.data.quality.config import Pii
from llmops.data.quality.pii import INSTALL, installed, redact, spans_of
from llmops.errors import BadRequest, ConfigError
from llmops.feedback.sift import PiiAction
from llmops.ratings.book import RatingBook
from llmops.ratings.check import verify_ratings
from llmops.ratings.outcomes import live, vote_of
from llmops.ratings.raters import is_imported
from llmops.records import Campaign, Item, Pins, Rating
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict, canonical_json


@dataclass(frozen=True)
class Told:
    """The lines, and what is not among them: digest of the rating, number and reason."""

    rows: tuple[JsonDict, ...]
    dropped: tuple[JsonDict, ...]

    @property
    def lines(self) -> bytes:
        """The rows as a JSONL file."""
        return b"".join(canonical_json(row) + b"\n" for row in self.rows)

    @property
    def dropped_lines(self) -> bytes:
        """What is not told as a JSONL file."""
        return b"".join(canonical_json(row) + b"\n" for row in self.dropped)


def all_ratings(registry: Registry, campaign: Campaign, action: PiiAction = "drop") -> Told:
    """Every rating of raters who did not withdraw, superseded ones too; texts with personal data are left out.

    Raises:
        BadRequest: it is a gate's campaign that lacks votes, or personal data was found and is to be refused.
        ConfigError: personal data is to be redacted or refused, and what finds it is not installed.
        InvalidEvidence: ratings or items were altered.
    """
    book = RatingBook(registry.store, registry.ledger, campaign)
    require_settled(book)
    verify_ratings(registry.store, registry.ledger, campaign.digest())
    if action in ("redact", "refuse") and not installed():
        raise ConfigError(f"--pii {action}: needs presidio-analyzer; {INSTALL}, or give --pii off")
    gone, texts = book.withdrawn(), book.texts()
    given = book.ratings()
    counted = {row.digest for row in live(given)}
    items = {item.digest: item for item in book.all_items()}
    labels: dict[str, str] = {}
    rows: list[JsonDict] = []
    dropped: list[JsonDict] = []
    for row in given:
        label = labels.setdefault(row.rater, f"r{len(labels) + 1}")
        if row.rater in gone:
            dropped.append(_lost(row, "withdrawn: its rater took it back"))
            continue
        said = _line(row, campaign, items.get(row.item))
        said |= {
            "rater": f"imported {label}" if is_imported(row.rater) else label,
            "live": row.digest in counted,
        }
        for name in ("note", "edit"):
            text = texts.get((row.digest, name))
            said[name], why = _clean(text, action)
            if why is not None:
                dropped.append(_lost(row, f"{why} in its {name}, which is left out"))
        rows.append(said)
    return Told(tuple(rows), tuple(dropped))


def require_settled(book: RatingBook) -> None:
    """Refuse to tell a gate's votes before all are in.

    Raises:
        BadRequest: says how many are missing.
    """
    if book.campaign.purpose != "gate" or book.settled():
        return
    standing = book.standing()
    raise BadRequest(
        f"campaign {book.campaign.name}: {standing.n_full} of {standing.n_items} items are rated, and nobody looks "
        f"before all are; rate on, or end it with `llmops feedback close {book.campaign.name}`"
    )


def _line(row: Rating, campaign: Campaign, item: Item | None) -> JsonDict:
    said = {k: v for k, v in asdict(row).items() if k not in ("rater", "note", "edit", "showing", "pins")}
    said |= {"digest": row.digest, "vote": vote_of(row)}
    if item is None:
        return {**said, "counts": False, "about": None}
    return {**said, "counts": item.counts, "about": asdict(Pins.of(campaign, item))}


def _clean(text: str | None, action: PiiAction) -> tuple[str | None, str | None]:
    """A text as it may be told, and why it may not."""
    if text is None or action == "off" or not installed():
        return text, None
    found = spans_of(text, Pii())
    if not found:
        return text, None
    what = "pii: " + ", ".join(sorted({span.entity for span in found}))
    if action == "refuse":
        raise BadRequest(f"ratings: a text holds {what[5:]}; give --pii drop or redact")
    return (redact(text, Pii()), None) if action == "redact" else (None, what)


def _lost(row: Rating, reason: str) -> JsonDict:
    return {"rating": row.digest, "number": row.number, "item": row.item, "reason": reason}
