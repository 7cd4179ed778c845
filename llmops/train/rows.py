"""A recipe's rows as token ids and loss masks: every row is trained on, held out, or dropped with a reason.

Reads dataset snapshots; what is none yet is frozen as one first (`llmops.train.frozen`), for lineage to name.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar, overload

from llmops.chat import Encoder, Tokenizer, encode_many
from llmops.data.quarantine import row_text
from llmops.data.rows import canonical_line
from llmops.data.snapshot import find_snapshot, stored_pool
from llmops.data.stored import StoredRows
from llmops.errors import RowRefused
from llmops.ratings.origins import require_dataset_standing
from llmops.records import DatasetSnapshot, Dropped, Message, PreferenceSnapshot, PromptContract, Row
from llmops.registry.adapters import Registry
from llmops.schema import Progress
from llmops.train.example import Example as Example
from llmops.train.frozen import Asked, freeze_rest, freeze_rows
from llmops.train.gate import UNCHECKED, Gate
from llmops.train.recipe import AnySource, DatasetSource, Recipe
from llmops.train.spool import ChosenExamples, SpooledExamples, hold_out_spooled

SPLIT_OFF = "answers in sequences of their own"
UNRENDERED = "rows whose reasoning the template leaves out"
IN_MEMORY_BYTES = 1 << 28
"""Conversations larger than this are kept on disk once they are encoded; as Python's numbers they take several times as
much memory."""
_REPORT_EVERY = 500


@dataclass(frozen=True)
class Pair:
    """One preference as the trainer sees it: a prompt and two answers to it, each with its end token."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    group: str
    source: str

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and chosen answer, as the model reads them."""
        return self.prompt_ids + self.chosen_ids

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of the prompt with the chosen answer, and with the rejected one."""
        n = len(self.prompt_ids)
        return n + len(self.chosen_ids), n + len(self.rejected_ids)

    @property
    def n_tokens(self) -> int:
        """Length of the longer side, in tokens."""
        return max(self.lengths)


@dataclass(frozen=True)
class Judged:
    """One answer that was judged alone, as the trainer sees it: prompt, answer with its end token, good or not."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    good: bool
    group: str
    source: str

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and answer, as the model reads them."""
        return self.prompt_ids + self.answer_ids

    @property
    def n_tokens(self) -> int:
        """Length in tokens."""
        return len(self.token_ids)


class TrainRow(Protocol):
    """What is common to every form of row a method learns from."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The row, or its better side, as the model reads it."""

    @property
    def n_tokens(self) -> int:
        """Length in tokens, of the longer side where there are two."""

    @property
    def group(self) -> str:
        """What rows are held out by."""

    @property
    def source(self) -> str:
        """Where it stood, `file:line`."""


E = TypeVar("E", bound=TrainRow)


@dataclass(frozen=True)
class Source:
    """Rows read for a recipe, before they are encoded."""

    snapshot: DatasetSnapshot
    rows: Sequence[Row]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class Examples(Generic[E]):
    """A recipe's rows, all accounted for."""

    snapshot: DatasetSnapshot | PreferenceSnapshot
    train: Sequence[E]
    held_out: Sequence[E]
    dropped: tuple[Dropped, ...]
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_rows(self) -> dict[str, int]:
        """Rows by what became of them, dropped ones by reason too, and what is to be known of those that were kept."""
        found = {"train": len(self.train), "held_out": len(self.held_out), "dropped": len(self.dropped)}
        reasons = {f"dropped: {kind}": n for kind, n in sorted(Counter(d.kind for d in self.dropped).items())}
        return {**found, **reasons, **self.notes}

    @property
    def n_read(self) -> int:
        """Rows there were, dropped ones included."""
        return len(self.train) + len(self.held_out) + len(self.dropped) - self.notes.get(SPLIT_OFF, 0)


def read_source(
    data: AnySource, name: str, folder: Path, registry: Registry, gate: Gate = UNCHECKED
) -> Source:
    """The conversations that `data` names: a dataset's newest snapshot, or anything else frozen as one now.

    Rows pass through the gate before they are frozen. Where it drops or redacts rows of a dataset, the others are
    frozen as a snapshot of their own: what a run names is what it learnt from.

    Args:
        data: what a recipe says of its data.
        name: the recipe's name, which a snapshot made now is called after.
        folder: what the files' paths are relative to.
        registry: where snapshots lie.
        gate: checks the rows; its progress is told what is read, and in which format.

    Raises:
        BadRequest: the dataset has no snapshot, or rests on ratings that were taken back.
        DataError: the data cannot be read, holds something else, or is refused by the gate.
        InvalidEvidence: the snapshot was altered.
        LlmopsError: hub, database or endpoint cannot be reached, or the disk did not take it.
    """
    if isinstance(data, DatasetSource):
        snapshot = find_snapshot(registry.store, registry.ledger, data.name)
        require_dataset_standing(registry.store, registry.ledger, snapshot)
        rows = stored_pool(registry.store, snapshot, data.pool)
        checked = gate.check(rows)
        if not checked.changed:
            return Source(snapshot, rows, ())
        frozen = freeze_rest(snapshot, checked, registry, canonical_line)
    else:
        frozen = freeze_rows(Asked(data, name, folder, gate), registry)
    return Source(frozen.snapshot, frozen.rows, frozen.dropped)


def encode_rows(
    source: Source, recipe: Recipe, tokenizer: Tokenizer, contract: PromptContract, progress: Progress
) -> Examples[Example]:
    """Every row with its checked loss mask, split into trained on, held out and dropped.

    A row is dropped when it was malformed, has more than `recipe.max_tokens` tokens, or has no exact loss mask. Whether
    that is too many is for `require_within_budget`. A conversation with turns that its template writes otherwise later
    becomes several examples, all of its group (`llmops.chat.masks`).
    """
    kept: list[Example] | SpooledExamples = []
    if isinstance(source.rows, StoredRows) and source.rows.n_bytes > IN_MEMORY_BYTES:
        kept = SpooledExamples(recipe.seed)
    dropped = list(source.dropped)
    notes: Counter[str] = Counter()
    encoder = Encoder(tokenizer, contract)
    found = encode_many(encoder, _Conversations(source.rows))
    for i, (row, sequences) in enumerate(zip(source.rows, found, strict=True)):
        if i % _REPORT_EVERY == 0:
            progress(0, 0, f"encoding rows: {i:,} of {len(source.rows):,}")
        reason = (
            sequences.reason
            if isinstance(sequences, RowRefused)
            else too_long(max(len(one.input_ids) for one in sequences), recipe)
        )
        if reason or isinstance(sequences, RowRefused):
            dropped.append(Dropped(row.source, str(reason), row_text(row)))
            continue
        kept.extend([Example(one, row.group, row.source) for one in sequences])
        notes[SPLIT_OFF] += len(sequences) - 1
        notes[UNRENDERED] += bool(sequences[0].unrendered)
    train, held_out = (
        hold_out(kept, recipe.held_out_frac, recipe.seed)
        if isinstance(kept, list)
        else hold_out_spooled(kept, recipe.held_out_frac)
    )
    return Examples(source.snapshot, train, held_out, tuple(dropped), +notes)


def token_lengths(rows: Sequence[TrainRow]) -> list[int]:
    """Tokens of each row; those on disk are not read for it."""
    return rows.lengths if isinstance(rows, ChosenExamples) else [row.n_tokens for row in rows]


class _Conversations(Sequence[tuple[tuple[Message, ...], str | None]]):
    """Turns and tools of rows, looked up when they are asked for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> tuple[tuple[Message, ...], str | None]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[tuple[Message, ...], str | None]]: ...

    def __getitem__(self, index: int | slice) -> object:
        if isinstance(index, slice):
            return [(row.messages, row.tools) for row in self._rows[index]]
        return self._rows[index].messages, self._rows[index].tools


def too_long(n_tokens: int, recipe: Recipe) -> str | None:
    """Why a row of so many tokens is not kept; None if it is."""
    if n_tokens <= recipe.max_tokens:
        return None
    return f"too long: {n_tokens} tokens, max_tokens is {recipe.max_tokens}"


def hold_out(rows: Sequence[E], held_out_frac: float, seed: int) -> tuple[list[E], list[E]]:
    """Rows to train on and rows to hold out, in their own order.

    Whole groups are held out, in the order of a hash of seed and group, as long as they fit into the fraction: rows of
    one group are alike, and a near-copy of a trained row would say nothing. If no group fits, none is held out.
    """
    sizes = Counter(row.group for row in rows)
    room, chosen = round(held_out_frac * len(rows)), set[str]()
    for group in sorted(sizes, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest()):
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
    return [r for r in rows if r.group not in chosen], [r for r in rows if r.group in chosen]
