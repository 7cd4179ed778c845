"""A user's rows looked at before a workspace is made of them: every line usable, and what follows for the settings.

Reads JSONL files; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmops.data.config import POOLS, Limits, Pools
from llmops.data.rows import prompt_digest, read_rows
from llmops.data.split import sift, split
from llmops.errors import DataError
from llmops.records import Row

MIN_GATE_CASES = 32
"""Fewer cases decide nothing: a gate's intervals keep their level from about this many on."""
MIN_RATED_ITEMS = 20
# Tried in this order until the gate has enough cases.
GATE_SHARES = (0.2, 0.3, 0.4, 0.5)
RATE_SHARE = 0.1
EPOCHS = 3
TEMPLATE_TOKENS = 64  # a chat template's default system prompt and ends
TURN_BYTES = 24  # what it puts around each turn
BYTES_PER_TOKEN = 3  # 4 to 5 in English prose, 3 in code and in most other languages
MAX_ANSWER_TOKENS = 1024


@dataclass(frozen=True)
class Shape:
    """Rows as the settings need to know them."""

    n_rows: int
    n_groups: int
    n_train: int  # rows of the train pool
    n_gate: int  # prompts of the gate pool: the cases it can have
    pools: Pools
    most_tokens: int  # no row has more: a token is a byte at least
    usual_tokens: int  # of the longest row, in most languages
    answer_tokens: int  # the longest answer's, likewise

    @property
    def min_cases(self) -> int:
        """Cases a gate may ask for, with some to spare."""
        return max(MIN_GATE_CASES, self.n_gate * 4 // 5)

    @property
    def min_items(self) -> int:
        """Rated pairs of answers a gate may ask for: where both systems say the same there is nothing to rate."""
        return max(MIN_RATED_ITEMS, self.n_gate * 2 // 3)

    def n_steps(self, most: int, rows_a_step: int) -> int:
        """Optimizer steps for three passes over the rows, at most `most`."""
        return max(1, min(most, math.ceil(EPOCHS * self.n_train / rows_a_step)))


def read_shape(files: Sequence[tuple[Path, str]], salt: str) -> Shape:
    """Read every row of the files (path, and the name to call it by in messages) and split them as a build would.

    Raises:
        DataError: a line cannot be used, repeats another, or there are too few rows; one message says how many.
    """
    sifted = sift((row for path, name in files for row in read_rows(path, name)), Limits().max_characters)
    n_read = len(sifted.kept) + len(sifted.dropped)
    if sifted.dropped:
        first = sifted.dropped[0]
        raise DataError(
            f"{first.source}: {first.reason}; {len(sifted.dropped):,} of {n_read:,} rows cannot be used, "
            "mend or remove them"
        )
    names = ", ".join(name for _, name in files)
    if not n_read:
        raise DataError(f"{names}: has no rows; give a JSON object a line")
    pools = _pools_for(sifted.kept, salt, names)
    parts = split(sifted.kept, pools, salt)
    longest = max(_n_bytes(row) + TURN_BYTES * len(row.messages) for row in sifted.kept)
    answer = max(len(row.messages[-1].content.encode()) for row in sifted.kept)
    return Shape(
        n_rows=n_read,
        n_groups=len({row.group for row in sifted.kept}),
        n_train=len(parts["train"]),
        n_gate=_n_prompts(parts["gate"]),
        pools=pools,
        most_tokens=_up(longest + TEMPLATE_TOKENS, 64),
        usual_tokens=_up(longest / BYTES_PER_TOKEN + TEMPLATE_TOKENS, 64),
        answer_tokens=min(MAX_ANSWER_TOKENS, _up(answer / BYTES_PER_TOKEN, 16)),
    )


def _pools_for(rows: Sequence[Row], salt: str, names: str) -> Pools:
    """The smallest share for the gate that gives it enough cases and leaves no pool empty."""
    most, smallest = 0, 0
    for share in GATE_SHARES:
        pools = Pools(train=round(1 - share - RATE_SHARE, 1), rate=RATE_SHARE, gate=share)
        parts = split(rows, pools, salt)
        most, smallest = _n_prompts(parts["gate"]), min(len(parts[name]) for name in POOLS)
        if most >= MIN_GATE_CASES and smallest:
            return pools
    n_groups, n_prompts = len({row.group for row in rows}), _n_prompts(rows)
    needed = math.ceil(1.2 * MIN_GATE_CASES / GATE_SHARES[-1])
    advice = (
        f"give about {needed} rows or more, their prompts different"
        if n_prompts < needed
        else "give more groups, or leave `group` out: rows of one group never land in two pools"
    )
    raise DataError(
        f"{names}: {len(rows):,} rows ({n_prompts:,} prompts in {n_groups:,} groups) give the gate {most} cases "
        f"at most, and it decides nothing under {MIN_GATE_CASES}; {advice}"
    )


def _n_bytes(row: Row) -> int:
    return sum(len(message.content.encode()) for message in row.messages)


def _n_prompts(rows: Sequence[Row]) -> int:
    return len({prompt_digest(row.messages) for row in rows})


def _up(value: float, step: int) -> int:
    """`value` rounded up to a multiple of `step`, which is the least."""
    return max(step, math.ceil(value / step) * step)
