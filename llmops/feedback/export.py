"""From ratings to data: every item of a train campaign is a row to learn from, or is dropped with its reason.

Reads the campaign and its ratings, all verified first; writes a snapshot and tells the ledger. Preferences become a
preference snapshot; judged answers (KTO) and conversations (SFT) a dataset called CAMPAIGN-kto or CAMPAIGN-sft, with
the ratings behind each row. Which answers become which row is `llmops.feedback.forms`, what is sifted out of those
`llmops.feedback.sift`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmops.data import asked_digest, gate_prompts
from llmops.data.rows import canonical_line, labelled_line
from llmops.errors import BadRequest
from llmops.feedback.forms import RULES, Form, Judged, Texts, judged
from llmops.feedback.sift import NOT_SCANNED, Candidate, Lost, PiiAction, is_scanned, sift
from llmops.ratings.book import RatingBook
from llmops.ratings.check import verify_ratings
from llmops.ratings.origins import origin_lines
from llmops.ratings.outcomes import live
from llmops.ratings.preferences import PAIRS_FILE, DroppedItem, newest_preferences, put_preferences
from llmops.records import Campaign, DatasetSnapshot, Preference, PreferenceSnapshot, Rating
from llmops.registry.adapters import Registry
from llmops.schema import canonical_json
from llmops.settings import now

TRAIN_FILE, DROPPED_FILE, LEFT_OUT_FILE, ORIGINS_FILE = (
    "train.jsonl",
    "dropped.jsonl",
    "left_out.jsonl",
    "origins.jsonl",
)
LICENCE = "not stated"
WITHDRAWN = "withdrawn: its rater took it back"
_LINES: dict[Form, Callable[[Any], bytes]] = {"kto": labelled_line, "sft": canonical_line}


@dataclass(frozen=True)
class Export:
    """What is asked for."""

    form: Form = "preferences"
    pii: PiiAction = "drop"


@dataclass
class _Found:
    """What a campaign came to: rows, the items and rows that are not among them, and ratings that were not heard."""

    kept: list[Candidate]
    dropped: list[Lost]
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (rating, item)

    @property
    def counts(self) -> dict[str, int]:
        """What was dropped, by the class of its reason."""
        return dict(sorted(Counter(lost.reason.partition(":")[0] for lost in self.dropped).items()))

    @property
    def others(self) -> dict[str, bytes]:
        """The file of ratings that were not heard; none without any."""
        rows = ({"rating": rating, "item": item, "reason": WITHDRAWN} for rating, item in self.left_out)
        lines = b"".join(canonical_json(row) + b"\n" for row in rows)
        return {LEFT_OUT_FILE: lines} if lines else {}


def export_preferences(
    registry: Registry, campaign: Campaign, asked: Export | None = None
) -> PreferenceSnapshot:
    """Freeze what people preferred so far; the same votes again are the same snapshot.

    Raises:
        BadRequest: it is a gate campaign, whose prompts must never be trained on, or no item became a pair.
        InvalidEvidence: ratings, items or a dataset's gate pool were altered.
        StoreError: the disk did not take it.
    """
    asked = asked or Export()
    found = _rows_of(registry, campaign, asked)
    pairs = [c.row for c in found.kept if isinstance(c.row, Preference)]
    dropped = [DroppedItem(lost.item, lost.source, lost.reason) for lost in found.dropped]
    snapshot = PreferenceSnapshot(
        name=campaign.name,
        artifact=put_preferences(registry.store, pairs, dropped, found.others),
        campaign=campaign.digest(),
        dataset=campaign.dataset,
        n_pairs=len(pairs),
        n_dropped=found.counts,
        rule=_rule(campaign, asked),
        licence=_licence(registry, campaign),
        created_at=now(),
    )
    return _recorded(registry, snapshot)


def export_rows(registry: Registry, campaign: Campaign, asked: Export) -> DatasetSnapshot:
    """Freeze judged answers or conversations as a dataset that recipes can name. Raises as `export_preferences`."""
    found = _rows_of(registry, campaign, asked)
    line, origins = _LINES[asked.form], [(c.item, c.ratings) for c in found.kept]
    lost = ({"item": d.item, "source": d.source, "reason": d.reason} for d in found.dropped)
    files = {
        TRAIN_FILE: b"".join(line(c.row) + b"\n" for c in found.kept),
        DROPPED_FILE: b"".join(canonical_json(row) + b"\n" for row in lost),
        ORIGINS_FILE: origin_lines(origins),
        **found.others,
    }
    snapshot = DatasetSnapshot(
        name=f"{campaign.name}-{asked.form}",
        artifact=registry.store.put_files("dataset", files),
        n_rows={"train": len(found.kept)},
        n_dropped=found.counts,
        licence=_licence(registry, campaign),
        origin=f"campaign {campaign.name}: {_rule(campaign, asked)}",
    )
    body = {
        "name": snapshot.name,
        "snapshot": registry.store.put_record(snapshot),
        "artifact": snapshot.artifact,
        "campaign": campaign.digest(),
    }
    told = [e for e in registry.ledger.events("dataset.snapshotted") if e.body["name"] == snapshot.name]
    if not told or told[-1].body != body:
        registry.ledger.append("dataset.snapshotted", body)
    return snapshot


def write_rows(registry: Registry, kind: str, artifact: str, path: Path) -> None:
    """Copy a snapshot's rows to a JSONL file, verified, and what was dropped beside it as PATH.dropped.jsonl.

    Raises:
        BadRequest: the file cannot be written there.
        InvalidEvidence: the snapshot's files are gone or altered.
    """
    folder = registry.store.verify(kind, artifact)
    rows = PAIRS_FILE if kind == "preferences" else TRAIN_FILE
    write_file(path, (folder / rows).read_bytes())
    write_file(dropped_beside(path), (folder / DROPPED_FILE).read_bytes())


def dropped_beside(path: Path) -> Path:
    """Where the list of what was dropped is written: beside the rows."""
    return path.with_name(f"{path.stem}.dropped.jsonl")


def write_file(path: Path, content: bytes) -> None:
    """Write a file that the user named.

    Raises:
        BadRequest: it cannot be written there.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BadRequest(f"{path}: cannot be written ({error.strerror}); choose another file") from None


def require_train(campaign: Campaign) -> None:
    """Refuse to learn from what a gate decides on.

    Raises:
        BadRequest: it is a gate campaign.
    """
    if campaign.purpose != "train":
        raise BadRequest(
            f"campaign {campaign.name}: is for a gate, and what a gate decides on is never trained on; open one with "
            "purpose: train"
        )


def _rule(campaign: Campaign, asked: Export) -> str:
    scanned = "" if is_scanned(asked.pii) else f"; {NOT_SCANNED}"
    return RULES[campaign.kind, asked.form] + scanned


def _licence(registry: Registry, campaign: Campaign) -> str:
    if campaign.dataset is None:
        return campaign.licence or LICENCE
    return registry.store.get_record(DatasetSnapshot, campaign.dataset).licence


def _recorded(registry: Registry, snapshot: PreferenceSnapshot) -> PreferenceSnapshot:
    """The newest snapshot of the name when it says the same, else this one, stored and told."""
    if any(e.body["name"] == snapshot.name for e in registry.ledger.events("preferences.snapshotted")):
        newest = newest_preferences(registry.store, registry.ledger, snapshot.name)
        if (newest.artifact, newest.campaign) == (snapshot.artifact, snapshot.campaign):
            return newest
    body = {
        "name": snapshot.name,
        "preferences": registry.store.put_record(snapshot),
        "artifact": snapshot.artifact,
        "campaign": snapshot.campaign,
    }
    registry.ledger.append("preferences.snapshotted", body)
    return snapshot


def _rows_of(registry: Registry, campaign: Campaign, asked: Export) -> _Found:
    """The rows of a campaign and everything that is not among them, in the campaign's order."""
    require_train(campaign)
    if (campaign.kind, asked.form) not in RULES:
        raise BadRequest(
            f"campaign {campaign.name}: answers were rated one by one, which makes no pairs; export them as kto or sft"
        )
    book = RatingBook(registry.store, registry.ledger, campaign)
    verify_ratings(registry.store, registry.ledger, campaign.digest())
    found = _sorted_out(book, asked.form, gate_prompts(registry.store, registry.ledger))
    kept, lost = sift(found.kept, asked.pii)
    found.kept, found.dropped = kept, found.dropped + lost
    if not kept:
        why = ", ".join(f"{n} {reason}" for reason, n in found.counts.items())
        row = "pair" if asked.form == "preferences" else "row to learn from"
        raise BadRequest(
            f"campaign {campaign.name}: none of {campaign.n_items} items is a {row} yet ({why}); rate on with "
            f"`llmops feedback ui {campaign.name}`"
        )
    return found


def _sorted_out(book: RatingBook, form: Form, forbidden: set[str]) -> _Found:
    answers: dict[str, list[Rating]] = defaultdict(list)
    for rating in live(book.ratings()):
        answers[rating.item].append(rating)
    heard = {rating.digest for rating in book.evidence()}
    texts: Texts = book.texts()
    found = _Found([], [])
    for item in book.items():
        given = answers[item.digest]
        counting = [rating for rating in given if rating.digest in heard]
        found.left_out += [(r.digest, item.digest) for r in given if r.digest not in heard]
        made: Judged | str
        if asked_digest(item.messages) in forbidden:
            made = "gate prompt: stands in a gate pool now"
        elif given and not counting:
            made = "withdrawn: all its raters took their answers back"
        else:
            made = judged(item, book.campaign.kind, form, counting, texts)
        if isinstance(made, str):
            found.dropped.append(Lost(item.digest, item.source, made))
        else:
            found.kept += [Candidate(row, item.digest, made.ratings) for row in made.rows]
    found.dropped += [
        Lost(digest, "deleted", "deleted: its texts were, on demand") for digest in book.deleted()
    ]
    return found
