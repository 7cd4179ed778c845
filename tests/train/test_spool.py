"""Data larger than memory: rows that lie on disk train the same adapter, and memory does not grow with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmops.chat import Encoded
from llmops.registry.adapters import Registry
from llmops.train import rows as rows_module
from llmops.train.finetune import finetune
from llmops.train.rows import Example, hold_out
from llmops.train.spool import SpooledExamples, hold_out_spooled
from tests.data.containers import write_jsonl
from tests.train.support import Bench


def example(n: int, length: int, group: str) -> Example:
    ids = tuple((n * 31 + i) % 300 for i in range(length))
    return Example(Encoded(ids, tuple(i % 2 for i in range(length)), (n,), ()), group, f"f:{n}")


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from("abcdefgh")), max_size=40),
    st.integers(0, 9),
    st.floats(0, 0.5),
)
def test_rows_on_disk_are_the_rows_and_are_held_out_as_in_memory(
    given_rows: list[tuple[int, str]], seed: int, held_out_frac: float
) -> None:
    rows = [example(n, length, group) for n, (length, group) in enumerate(given_rows)]
    spooled = SpooledExamples(seed)
    spooled.extend(rows)
    assert list(spooled) == rows == spooled[:]
    assert [spooled[i] for i in range(len(rows))] == rows
    for mine, theirs in zip(
        hold_out_spooled(spooled, held_out_frac), hold_out(rows, held_out_frac, seed), strict=True
    ):
        assert list(mine) == theirs
        assert (len(mine), mine.lengths) == (len(theirs), [row.n_tokens for row in theirs])


@pytest.mark.parametrize("packing", [False, pytest.param(True, marks=pytest.mark.walk)])
def test_adapter_is_the_same_whether_rows_lie_in_memory_or_on_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    write_jsonl(
        bench.root / "rows.jsonl", [{"prompt": f"p{i}", "completion": "c" * (i % 9 + 1)} for i in range(40)]
    )
    settings = {"n_steps": 3, "held_out_frac": 0.1, "batch": {"per_device": 4, "packing": packing}}
    in_memory = finetune(bench.recipe(**settings), bench.workspace)
    monkeypatch.setattr(rows_module, "IN_MEMORY_BYTES", 0)
    on_disk = finetune(bench.recipe(**settings), bench.workspace)
    assert on_disk.adapter == in_memory.adapter
    registry = Registry.of(bench.workspace)
    first, second = (registry.lineage(record) for record in (in_memory, on_disk))
    assert first.n_rows == second.n_rows
    assert first.metrics["held_out_loss"] == second.metrics["held_out_loss"]


READ = """
import resource, sys
from pathlib import Path
from llmops.registry.adapters import Registry
from llmops.settings import find_workspace
from llmops.train.recipe import FileSource
from llmops.train.rows import read_source

soft = int(sys.argv[2]) * 1024 * 1024
resource.setrlimit(resource.RLIMIT_DATA, (soft, soft))
registry = Registry.of(find_workspace(Path(sys.argv[1])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = read_source(FileSource(kind="files", paths=("large.jsonl",)), "large", Path(sys.argv[1]), registry)
n = sum(len(row.messages) for row in source.rows) // 2
print(n, len(source.dropped), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.walk
def test_reading_and_freezing_takes_no_more_memory_for_more_rows(bench: Bench) -> None:
    """64 MB of rows in a child that may have 200 MB of data in all, of which its libraries take most."""
    line = json.dumps({"prompt": "p" * 4000 + "%d", "completion": "c" * 4000})
    with (bench.root / "large.jsonl").open("w") as file:
        for i in range(8000):
            file.write((line % i if i % 1000 else '{"prompt": "cut') + "\n")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(bench.root), "200"],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    n_rows, n_dropped, grown_kib = map(int, done.stdout.split())
    assert (n_rows, n_dropped) == (7992, 8)
    assert grown_kib < 24 * 1024


ENCODE = """
import resource, sys
from pathlib import Path
from transformers import AutoTokenizer
from llmops.chat import read_contract
from llmops.registry.adapters import Registry
from llmops.schema import no_progress
from llmops.settings import find_workspace
from llmops.train import rows as rows_module
from llmops.train.methods.sft import to_dataset
from llmops.train.recipe import load_recipe
from llmops.train.rows import encode_rows, read_source

rows_module.IN_MEMORY_BYTES = 0
root = Path(sys.argv[1])
recipe = load_recipe(root / "recipe.yaml")
contract, tokenizer = read_contract(Path(recipe.base_model)), AutoTokenizer.from_pretrained(recipe.base_model)

def encoded(name):
    data = recipe.data.model_copy(update={"paths": (name,)})
    source = read_source(data, "x", root, Registry.of(find_workspace(root)))
    examples = encode_rows(source, recipe, tokenizer, contract, no_progress)
    dataset = to_dataset(examples.train, root / name.partition(".")[0])
    return sum(len(dataset[i]["labels"]) for i in range(len(dataset)))

encoded("few.jsonl")
(data,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")]
bound = int(data.split()[1]) * 1024 + 120 * 1024 * 1024
resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
print(encoded("many.jsonl"))
"""


@pytest.mark.slow
def test_encoding_takes_no_more_memory_for_more_rows(bench: Bench) -> None:
    """12 million tokens, over 400 MB as Python's numbers, in a child that may take 120 MB more than for a few."""
    row = {"prompt": "p" * 800, "completion": "c" * 800}
    write_jsonl(bench.root / "few.jsonl", [row] * 600)
    write_jsonl(bench.root / "many.jsonl", [row] * 8000)
    bench.recipe(max_tokens=2000)
    done = subprocess.run(
        [sys.executable, "-c", ENCODE, str(bench.root)],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 12_000_000
