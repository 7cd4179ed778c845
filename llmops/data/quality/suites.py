"""The cases of a workspace's suites as texts to compare training rows with.

Reads suite files, snapshots and case files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from llmops.data.cases import DatasetCases, FileCases, resolve_cases, sample_of
from llmops.data.quality.checks import Against
from llmops.data.quality.texts import asked_words
from llmops.errors import DataError, InvalidEvidence, LlmopsError
from llmops.ledger import Ledger
from llmops.records import Case, EvalText, Row
from llmops.settings import load_yaml
from llmops.store import Store

Pools = Mapping[tuple[str, str], Sequence[Row]]
"""Rows of pools that are being built and have no snapshot yet, by dataset and pool."""


class SuiteCases(BaseModel):
    """What a suite's file says of its cases; the rest is for the evaluation to check."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    """The suite's name."""
    cases: Annotated[DatasetCases | FileCases, Field(discriminator="kind")]
    """Where its cases come from."""


def suite_reader(folder: Path, store: Store, ledger: Ledger) -> Callable[[Pools], Against]:
    """A function that reads the cases of every suite in a folder, afresh each time.

    Args:
        folder: `evals/suites` of a workspace; without it there are no suites.
        store: where snapshots lie.
        ledger: which snapshot is a dataset's newest.
    """

    def read(building: Pools) -> Against:
        texts: list[EvalText] = []
        waiting: list[str] = []
        for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
            suite = load_yaml(path, SuiteCases)
            if missing := _never_built(suite.cases, building, ledger):
                waiting.append(f"suite {suite.name} has no cases yet: dataset {missing} was never built")
                continue
            try:
                cases = _cases(suite.cases, building, path.parent, (store, ledger))
            except LlmopsError as error:
                kind = InvalidEvidence if isinstance(error, InvalidEvidence) else DataError
                raise kind(f"{path}: {error}") from error
            texts += [text_of(case, suite.name) for case in cases]
        return Against(tuple(texts), tuple(waiting))

    return read


def text_of(case: Case, suite: str) -> EvalText:
    """A case as it is compared."""
    return EvalText(suite, case.digest, case.source, tuple(asked_words(case.messages)), case.references)


def _never_built(wanted: DatasetCases | FileCases, building: Pools, ledger: Ledger) -> str | None:
    """The name of the suite's dataset when it has no snapshot yet."""
    if isinstance(wanted, FileCases) or (wanted.name, wanted.pool) in building:
        return None
    built = any(e.body["name"] == wanted.name for e in ledger.events("dataset.snapshotted"))
    return None if built else wanted.name


def _cases(
    wanted: DatasetCases | FileCases, building: Pools, folder: Path, place: tuple[Store, Ledger]
) -> list[Case]:
    if isinstance(wanted, DatasetCases) and (wanted.name, wanted.pool) in building:
        return sample_of(wanted, building[wanted.name, wanted.pool])
    return resolve_cases(wanted, folder, *place)
