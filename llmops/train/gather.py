"""A recipe's data written down row by row: every part read in its format, drawn by its weight, and accounted for.

Writes files into the folder it is given; memory holds one row, and the list of those that were dropped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from llmops.data.formats import Found, Item, unpaired
from llmops.data.quarantine import DROPPED_FILE, dropped_lines
from llmops.data.snapshot import find_snapshot, stored_pool
from llmops.data.sources import open_source
from llmops.errors import DataError
from llmops.ratings.origins import require_dataset_standing
from llmops.ratings.preferences import find_preferences, load_pairs
from llmops.records import Dropped, Labelled, Preference, Row
from llmops.registry.adapters import Registry
from llmops.schema import Progress, short
from llmops.train.recipe.sources import DatasetSource, MixturePart, PreferenceSource

WORDS: dict[type[Item], str] = {Row: "conversations", Preference: "preferences", Labelled: "judged answers"}
REMEDY: dict[type[Item], str] = {
    Row: "method sft learns from conversations (messages, prompt and completion ...)",
    Preference: "methods dpo and orpo learn from preferences (prompt, chosen, rejected)",
    Labelled: "method kto learns from judged answers (prompt, completion, label) and from preferences",
}
NOT_DRAWN_FILE = "not_drawn.jsonl"
_REPORT_EVERY = 500


@dataclass(frozen=True)
class Opened:
    """One file, query, endpoint or snapshot: its name and format in words, what it gives, and its rows."""

    name: str
    format: str
    gives: type[Item] | None
    found: Iterable[Found]


@dataclass(frozen=True)
class Wanted:
    """What a method learns from, and how a row of it is written down."""

    item: type[Item]
    line: Callable[[Any], bytes]
    file: str


@dataclass
class Account:
    """What became of the rows that were read."""

    n_kept: int = 0
    n_not_drawn: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # in words, for the log and the record

    @property
    def words(self) -> str:
        """The parts with their formats."""
        return ", ".join(self.parts)


def open_part(part: MixturePart, folder: Path, registry: Registry) -> Iterator[Opened]:
    """What a part of a recipe's data holds, file by file.

    Raises:
        LlmopsError: it cannot be read, see `llmops.data.sources.open_source`.
    """
    source = part.source
    if isinstance(source, DatasetSource):
        snapshot = find_snapshot(registry.store, registry.ledger, source.name)
        require_dataset_standing(registry.store, registry.ledger, snapshot)
        rows = stored_pool(registry.store, snapshot, source.pool)
        yield Opened(f"dataset {source.name}@{short(snapshot.digest())}", "snapshot", Row, rows)
    elif isinstance(source, PreferenceSource):
        preferences = find_preferences(registry.store, registry.ledger, source.name)
        pairs = load_pairs(registry.store, preferences)
        name = f"preferences {source.name}@{short(preferences.digest())}"
        yield Opened(name, "snapshot", Preference, pairs)
    else:
        for opened in open_source(source, folder):
            gives = opened.format.gives if opened.format else None
            yield Opened(opened.name, opened.format_name, gives, opened.found)


@dataclass(frozen=True)
class Gathering:
    """Where a recipe's rows come from: its parts, the mixture's seed, and what paths are relative to."""

    parts: tuple[MixturePart, ...]
    seed: int
    folder: Path
    registry: Registry
    progress: Progress


def gather(gathering: Gathering, wanted: Wanted, into: Path) -> Account:
    """Write the rows of all parts to `wanted.file` in the folder `into`, and what was dropped or not drawn beside it.

    Raises:
        DataError: a part holds what the method does not learn from.
        LlmopsError: a part cannot be read.
    """
    account = Account()
    with (into / wanted.file).open("wb") as kept, (into / DROPPED_FILE).open("wb") as dropped:
        for number, part in enumerate(gathering.parts):
            for opened in open_part(part, gathering.folder, gathering.registry):
                at = "" if part.weight == 1 else f" at weight {part.weight:g}"
                account.parts.append(f"{opened.name} ({opened.format}){at}")
                gathering.progress(0, 0, f"reading {account.parts[-1]}")
                rows = _lines(opened, wanted, account, gathering.progress)
                if part.weight == 1:
                    for line in rows:
                        kept.write(line + b"\n")
                        account.n_kept += 1
                else:
                    draw = random.Random(f"{gathering.seed}:{number}:{opened.name}")
                    n_before = account.n_not_drawn
                    _drawn(rows, part.weight, draw, (into, kept), account)
                    if n_lost := account.n_not_drawn - n_before:
                        account.parts[-1] += f", {n_lost:,} not drawn"
        dropped.write(dropped_lines(account.dropped))
    return account


def _lines(opened: Opened, wanted: Wanted, account: Account, progress: Progress) -> Iterator[bytes]:
    if opened.gives is not None and not _fits(opened.gives, wanted):
        raise DataError(
            f"{opened.name}: holds {WORDS[opened.gives]} (format {opened.format}), where {WORDS[wanted.item]} are "
            f"needed; {REMEDY[opened.gives]}"
        )
    for n_read, found in enumerate(opened.found, start=1):
        if n_read % _REPORT_EVERY == 0:
            progress(0, 0, f"reading {account.parts[-1]}: {n_read:,} rows")
        if isinstance(found, Dropped):
            account.dropped.append(found)
        elif isinstance(found, Preference) and wanted.item is Labelled:
            yield from map(wanted.line, unpaired(found))
        else:
            yield wanted.line(found)


def _fits(gives: type[Item], wanted: Wanted) -> bool:
    return gives is wanted.item or (gives is Preference and wanted.item is Labelled)


def _drawn(
    rows: Iterator[bytes], weight: float, draw: random.Random, files: tuple[Path, IO[bytes]], account: Account
) -> None:
    """Write every row `weight` times: whole copies of all, one more of as many, drawn, as make up the fraction.

    Exactly round(n * fraction) rows are drawn (selection sampling, Knuth's algorithm S), which needs their number: they
    lie in a file of their own meanwhile.
    """
    folder, kept = files
    whole, fraction = int(weight), weight - int(weight)
    waiting = folder / "part.jsonl"
    with waiting.open("wb") as spool:
        n_rows = sum(1 for line in rows if spool.write(line + b"\n"))
    n_left, n_needed = n_rows, round(n_rows * fraction)
    with waiting.open("rb") as spool, (folder / NOT_DRAWN_FILE).open("ab") as not_drawn:
        for line in spool:
            chosen = draw.random() * n_left < n_needed
            n_left, n_needed = n_left - 1, n_needed - chosen
            n_copies = whole + chosen
            kept.write(line * n_copies)
            account.n_kept += n_copies
            if not n_copies:
                not_drawn.write(line)
                account.n_not_drawn += 1
    waiting.unlink()
