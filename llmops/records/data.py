"""Conversations, rows and dataset snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmops.schema import Record


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One training or evaluation example: a conversation that ends with the assistant's answer.

    `group` is what pools are split by (rows of one group never land in two pools); `source` is `file:line`.
    """

    messages: tuple[Message, ...]
    group: str
    source: str


@dataclass(frozen=True)
class Dropped:
    """A row that was not kept: where it stood and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class DatasetSnapshot(Record):
    """A named dataset frozen by content. Its rows lie in the store under kind `dataset`, one JSONL file per pool."""

    schema: ClassVar[str] = "llmops.dataset/1"
    name: str
    artifact: str  # digest of the stored files
    n_rows: dict[str, int]  # by pool
    n_dropped: dict[str, int]  # by reason
    licence: str
    origin: str  # what the rows were built from, in words
