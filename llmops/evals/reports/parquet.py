"""`samples.parquet`: everything about every answer of a session, one row a (suite, case, system, sample).

The table's metadata (key `llmops`, JSON) carries what could change the numbers: suite digests, engine, decoding,
metric signatures. A case's score is that of all its samples together and stands in each of their rows; it is null where
the case was not answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmops.evals.evidence import Result, is_answered
from llmops.evals.reports.comparison import Evaluated
from llmops.records import Case, Completion, Message, ToolCall
from llmops.schema import JsonDict, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = "llmops.samples/1"
METADATA_KEY = b"llmops"


def write_samples(path: Path, parts: Sequence[Evaluated]) -> None:
    """Write the table of a session.

    Args:
        path: the file, replaced when it is there.
        parts: what was evaluated on each suite.
    """
    import pyarrow as pa
    from pyarrow import parquet

    rows = [row for part in parts for result in part.results for row in _rows(part.suite.cases, result)]
    slices = sorted({name for part in parts for case in part.suite.cases for name in case.slices})
    results = [result for part in parts for result in part.results]
    metrics = list(dict.fromkeys(name for result in results for name in result.scores))
    metadata = {METADATA_KEY: canonical_json(_metadata(results))}
    schema = _schema(slices, metrics).with_metadata(metadata)
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def read_metadata(path: Path) -> JsonDict:
    """What the table's metadata says."""
    from pyarrow import parquet

    found: JsonDict = json.loads(parquet.read_schema(path).metadata[METADATA_KEY])
    return found


def _schema(slices: Sequence[str], metrics: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    text, texts, count = pa.string(), pa.list_(pa.string()), pa.int32()
    call = pa.struct([("name", text), ("arguments", text), ("id", text)])
    turn = pa.struct([("role", text), ("content", text), ("rest", text)])
    columns: list[tuple[str, Any]] = [
        ("suite", text), ("system", text), ("case", text), ("sample", count), ("source", text), ("group", text),
        ("pair", text), ("messages", pa.list_(turn)), ("follow_ups", texts), ("references", texts), ("tools", text),
        ("expected", text), ("status", text), ("error", text), ("finish_reason", text), ("text", text),
        ("earlier", texts), ("tool_calls", pa.list_(call)), ("n_prompt_tokens", count),
        ("n_completion_tokens", count), ("latency_s", pa.float64()), ("reference_logprob", pa.float64()),
        ("n_reference_tokens", count), ("answered_by", text), ("prompt_contract", text), ("cached", pa.bool_()),
        ("suite_digest", text), ("report", text),
    ]  # fmt: skip
    columns += [(f"slice.{name}", text) for name in slices]
    columns += [(f"score.{name}", pa.float64()) for name in metrics]
    return pa.schema(columns)


def _rows(cases: Sequence[Case], result: Result) -> Iterator[JsonDict]:
    report, place = result.report, 0
    shared: JsonDict = {"suite": report.suite, "suite_digest": report.suite_digest, "report": report.digest()}
    for case, samples in zip(cases, result.samples, strict=True):
        scored = is_answered(samples) and bool(result.scores)
        about = shared | _case_columns(case)
        if scored:
            about |= {f"score.{name}": float(s.per_case[place]) for name, s in result.scores.items()}
        place += is_answered(samples)
        for sample in samples:
            yield about | _sample_columns(sample)


def _case_columns(case: Case) -> JsonDict:
    return {
        "case": case.digest,
        "source": case.source,
        "group": case.group,
        "pair": case.pair,
        "messages": [_turn(m) for m in case.messages],
        "follow_ups": list(case.follow_ups),
        "references": list(case.references),
        "tools": case.tools,
        "expected": canonical_json(case.expected).decode() if case.expected else None,
        **{f"slice.{name}": value for name, value in case.slices.items()},
    }


def _turn(message: Message) -> JsonDict:
    """A turn; what few turns have (calls, reasoning, names) is canonical JSON in `rest`."""
    turn = message.to_turn()
    role, content = turn.pop("role"), turn.pop("content")
    return {"role": role, "content": content, "rest": canonical_json(turn).decode() if turn else None}


def _sample_columns(sample: Completion) -> JsonDict:
    plain = (
        "system", "sample", "status", "error", "finish_reason", "text", "n_prompt_tokens", "n_completion_tokens",
        "latency_s", "reference_logprob", "n_reference_tokens", "answered_by", "prompt_contract", "cached",
    )  # fmt: skip
    found: JsonDict = {name: getattr(sample, name) for name in plain}
    return found | {"earlier": list(sample.earlier), "tool_calls": [_call(c) for c in sample.tool_calls]}


def _call(call: ToolCall) -> JsonDict:
    return {"name": call.name, "arguments": call.arguments, "id": call.id}


def _metadata(results: Sequence[Result]) -> JsonDict:
    reports = [
        {
            "report": r.report.digest(),
            "suite": r.report.suite,
            "suite_digest": r.report.suite_digest,
            "system": r.report.system,
            "model": r.report.model,
            "base": r.report.base,
            "prompt_contract": r.report.prompt_contract,
            "session": r.report.session,
            "engine": r.report.engine.to_pairs(),
            "decoding": r.report.decoding,
            "n_cases": r.report.n_cases,
            "n_samples": r.report.n_samples,
            "n_cached": r.report.n_cached,
            "invalid": list(r.report.invalid),
            "metrics": {
                name: {"signature": s.signature, "unit": s.unit, "better": s.better, "kind": s.kind}
                for name, s in r.scores.items()
            },
        }
        for r in results
    ]
    return {"schema": SCHEMA, "reports": reports}
