"""Data: from user files or a builder to a snapshot with disjoint pools and an exact account of every row."""

from llmops.data.cases import cases_of, resolve_cases, sample
from llmops.data.config import DataConfig
from llmops.data.rows import asked_digest, read_rows
from llmops.data.snapshot import build_snapshot, find_snapshot, gate_prompts, load_pool

__all__ = [
    "DataConfig",
    "asked_digest",
    "build_snapshot",
    "cases_of",
    "find_snapshot",
    "gate_prompts",
    "load_pool",
    "read_rows",
    "resolve_cases",
    "sample",
]
