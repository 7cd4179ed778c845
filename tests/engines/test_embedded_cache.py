"""The batch's keys and values while rows join and leave, and the linear layers laid out for a CPU's kernels."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llmops.engines.embedded.__main__ import DEFAULTS
from llmops.engines.embedded.cache import SPARE_TOKENS, KVBlock
from llmops.engines.embedded.packed import PackedLinear, can_pack, pack_linears

HEADS, DIM, LAYERS = 2, 4, 2
ROOT = Path(__file__).parents[2]


@pytest.fixture
def unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills what `empty` gives with NaN
    yield
    torch.use_deterministic_algorithms(False)


class Mirror:
    """A block beside its rows' tokens, each a number that its keys and values are made of."""

    def __init__(self) -> None:
        self.block = KVBlock([])
        self.rows: list[list[float]] = []

    def begin(self, rows: list[list[float]]) -> None:
        width = max(map(len, rows))
        self.rows, self.block.lengths = rows, [len(row) for row in rows]
        self._append([[0.0] * (width - len(row)) + row for row in rows])

    def step(self) -> None:
        new = [random.random() for _ in self.rows]
        self.rows = [[*row, token] for row, token in zip(self.rows, new, strict=True)]
        self.block.lengths = [n + 1 for n in self.block.lengths]
        self._append([[token] for token in new])

    def keep(self, rows: list[int]) -> None:
        self.rows = [self.rows[i] for i in self.block.keep(rows)]

    def join(self, other: Mirror) -> None:
        self.block.join(other.block)
        self.rows = self.rows + other.rows

    def check(self) -> None:
        assert self.block.lengths == [len(row) for row in self.rows]
        if not self.rows:
            assert self.block.width == 0
            return
        assert self.block.width == max(map(len, self.rows))
        for i, layer in enumerate(self.block.cache.layers):
            for held, factor in ((layer.keys, 1 + i), (layer.values, -1 - i)):
                assert bool(held.isfinite().all())
                for row, tokens in zip(held, self.rows, strict=True):
                    assert row[0, -len(tokens) :, 0].tolist() == pytest.approx([factor * t for t in tokens])

    @torch.inference_mode()
    def _append(self, tokens: list[list[float]]) -> None:
        states = torch.tensor(tokens)[:, None, :, None].expand(-1, HEADS, -1, DIM)
        for i in range(LAYERS):
            self.block.cache.update((1 + i) * states, -(1 + i) * states, i)


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_join_and_leave_leave_the_others_as_they_are(
    seed: int, unwritten_memory_is_nan: None
) -> None:
    random.seed(seed)
    mirror = Mirror()
    for _ in range(3 * SPARE_TOKENS):
        if random.random() < 0.3 and len(mirror.rows) < 9:
            other = Mirror()
            other.begin([[random.random()] * random.randint(1, 40) for _ in range(random.randint(1, 3))])
            mirror.join(other)
        if mirror.rows:
            mirror.step()
            mirror.check()
        if random.random() < 0.3:
            mirror.keep([i for i in range(len(mirror.rows)) if random.random() < 0.7])
            mirror.check()


@pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="weights are packed on x86 alone"
)
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layer_computes_what_the_plain_one_does(bias: bool) -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(96, 160, bias=bias), torch.nn.ReLU()).requires_grad_(False)
    inputs = [torch.randn(*shape, 96) for shape in ((1, 1), (2, 1), (16, 1), (3, 7), (1, 130))]
    expected = [plain(x) for x in inputs]
    pack_linears(plain)
    assert isinstance(plain[0], PackedLinear)
    with torch.inference_mode():
        for x, wanted in zip(inputs, expected, strict=True):
            torch.testing.assert_close(plain(x), wanted, rtol=1e-5, atol=1e-5)
    assert (plain[0].in_features, plain[0].out_features, plain[0].weight.shape) == (96, 160, (160, 96))


MANY_LENGTHS = """
import psutil, torch
from llmops.engines.embedded.packed import pack_linears
net = torch.nn.Sequential(*[torch.nn.Linear(576, 96 * i, bias=False) for i in range(4, 8)])
pack_linears(net)
def held(lengths):
    with torch.inference_mode():
        for n in lengths:
            for layer in net:
                layer(torch.randn(n, 576))
    return psutil.Process().memory_info().rss
print(-(held([160]) - held(range(20, 160))) // 2**20)
"""


@pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="weights are packed on x86 alone"
)
def test_kernels_for_prompts_of_many_lengths_are_not_all_kept() -> None:
    environment = {**os.environ, **DEFAULTS}
    command = [sys.executable, "-c", MANY_LENGTHS]
    grown = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 100, grown.stdout  # 140 lengths; 320 MB where nothing says otherwise


def test_only_fp32_on_a_cpu_is_packed() -> None:
    assert not can_pack(torch.device("cpu"), torch.bfloat16)
    assert not can_pack(torch.device("cuda"), torch.float32)
