"""Confirmed cases are appended to the file of a suite, with where they come from and who confirmed them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmops.data.case_files import case_of, read_case_file
from llmops.data.cases import FileCases
from llmops.errors import BadRequest, DataError, StoreError
from llmops.evals.grow.proposal import IN_SUITE, TRAINED, TWICE, Decided, prompt_key, trained_keys
from llmops.evals.metrics.config import resolve_metrics
from llmops.evals.suite import SuiteConfig
from llmops.records import Case
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict, digest_of
from llmops.settings import load_yaml, now

MAX_NAME = 128


@dataclass(frozen=True)
class GrownSuite:
    """A suite whose cases lie in a file, and the cases in it now."""

    name: str
    file: Path
    cases: tuple[Case, ...]
    needs_references: str | None  # a metric that does

    def require_usable(self, case: Case, where: str) -> None:
        """Refuse a case that the suite could not score.

        Raises:
            DataError: it has no reference, and a metric needs one.
        """
        if self.needs_references and not case.references:
            raise DataError(
                f"{where}: has no reference, and {self.needs_references} needs one; write a good answer into its "
                "`references`"
            )


@dataclass(frozen=True)
class Grown:
    """What was appended: the cases, and how many of those confirmed were not, by reason."""

    cases: tuple[Case, ...]
    n_left_out: dict[str, int]


def grown_suite(path: Path) -> GrownSuite:
    """The suite of a YAML file; its cases' file may not be there yet.

    Raises:
        BadRequest: its cases come from a dataset, or its file is no JSONL.
        DataError: the file has a bad line.
    """
    config = load_yaml(path, SuiteConfig)
    if not isinstance(config.cases, FileCases):
        raise BadRequest(
            f"{path}: takes its cases from dataset {config.cases.name}; grow a suite with `cases: {{kind: file, path}}`"
        )
    file = path.parent / config.cases.path
    if file.suffix != ".jsonl":
        raise BadRequest(f"{file}: only a .jsonl file can be grown; write its cases into one")
    metrics = resolve_metrics(config.metrics, path.parent)
    needing = next((m.name for m in metrics if m.needs_references or m.needs_reference_logprobs), None)
    cases = tuple(read_case_file(file)) if file.is_file() and file.stat().st_size else ()
    return GrownSuite(config.name, file, cases, needing)


def grow(registry: Registry, suite: GrownSuite, decided: Sequence[Decided], by: str) -> Grown:
    """Append what was decided with yes; all of it or nothing. The ledger is told which cases, and the file's digests.

    Raises:
        BadRequest: `by` is no name.
        DataError: a case has no reference where a metric needs one, or the file would not be one of cases.
        StoreError: the disk did not take it; the file is as it was.
    """
    if not by.strip() or not by.isprintable() or len(by) > MAX_NAME:
        raise BadRequest(f"--as {by[:40]!r}: give a name of 1 to {MAX_NAME} printable characters")
    known = {prompt_key(case.messages) for case in suite.cases}
    trained = trained_keys(registry)
    left_out: Counter[str] = Counter()
    lines: list[JsonDict] = []
    added: dict[str, Case] = {}
    for i, one in enumerate((d for d in decided if d.yes), start=1):
        case = case_of(one.line, f"confirmed case {i}")
        key = prompt_key(case.messages)
        reason = IN_SUITE if key in known else TRAINED if key in trained else TWICE if key in added else None
        if reason is not None:
            left_out[reason] += 1
            continue
        suite.require_usable(case, f"confirmed case {i} ({one.origin})")
        added[key] = case
        grown = {"from": one.origin, "why": one.why, "confirmed_by": by.strip(), "at": now()}
        lines.append({**one.line, "grown": grown})
    if lines:
        after = _write(suite, lines)
        body = {
            "suite": suite.name,
            "cases": [case.digest for case in added.values()],
            "before": digest_of([case.digest for case in suite.cases]),
            "after": digest_of([case.digest for case in after]),
        }
        registry.ledger.append("suite.grown", body)
    return Grown(tuple(added.values()), dict(left_out))


def _write(suite: GrownSuite, lines: Sequence[JsonDict]) -> list[Case]:
    """Write the file with these lines behind its own beside it, read it as cases, and put it in its place."""
    beside = suite.file.with_name(f".{suite.file.stem}.growing.jsonl")
    try:
        own = suite.file.read_bytes() if suite.file.is_file() else b""
        own += b"" if not own or own.endswith(b"\n") else b"\n"
        new = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        with beside.open("wb") as file:
            file.write(own + new)
            file.flush()
            os.fsync(file.fileno())
        cases = read_case_file(beside)
        beside.replace(suite.file)
    except OSError as error:
        raise StoreError(
            f"{suite.file}: could not be written ({error.strerror}); nothing was added"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return cases
