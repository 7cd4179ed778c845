"""The quality gate of a dataset that is being built: its rows when they are read, its train pool when it is split.

Reads nothing itself; the suites' cases are told by a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from llmops.data.quality import CHECKS, Against, Assessed, Quality, Surroundings, assess, require_clean
from llmops.records import QualityReport, Row
from llmops.schema import Progress, no_progress

ReadCases = Callable[[Mapping[tuple[str, str], Sequence[Row]]], Against]
"""The suites' cases, given the rows of pools that have no snapshot yet, by dataset and pool."""

_LEAKS = "contamination"


def no_suites(building: Mapping[tuple[str, str], Sequence[Row]]) -> Against:  # noqa: ARG001 - a ReadCases
    """No suites, hence no cases."""
    return Against()


@dataclass(frozen=True)
class Gates:
    """What a build needs besides its YAML file: where cases come from, and who is shown the report.

    Without `enforce`, what a refusing check finds is only reported.
    """

    read_cases: ReadCases = no_suites
    show: Callable[[QualityReport], None] = lambda report: None  # noqa: ARG005 - shown to no one
    progress: Progress = no_progress
    enforce: bool = True


def check_rows(rows: Sequence[Row], settings: Quality, where: str, gates: Gates) -> Assessed[Row]:
    """All checks but the one for cases of suites, which needs the pools.

    Raises:
        ConfigError: a check needs what is not installed.
        DataError: a check that is set to refuse has found rows.
    """
    others = [name for name in CHECKS if name != _LEAKS]
    checked = assess(rows, settings.only(*others), where, Surroundings(progress=gates.progress))
    if gates.enforce:
        require_clean(checked.report, where)
    return checked


def check_train(
    pools: Mapping[str, Sequence[Row]], settings: Quality, name: str, gates: Gates
) -> Assessed[Row]:
    """The train pool against the cases of every suite, those of this very dataset's new pools among them.

    Raises:
        DataError: rows hold cases and are refused, or the suites cannot be read.
        InvalidEvidence: a suite's data was altered.
    """
    building = {(name, pool): rows for pool, rows in pools.items() if pool != "train"}
    around = Surroundings(partial(gates.read_cases, building), progress=gates.progress)
    where = f"train pool of {name}"
    checked = assess(pools["train"], settings.only(_LEAKS), where, around)
    if gates.enforce:
        require_clean(checked.report, where)
    return checked


def joined(rows: QualityReport, train: QualityReport, settings: Quality) -> QualityReport:
    """The reports of both steps as one."""
    return replace(
        rows,
        n_dropped=rows.n_dropped + train.n_dropped,
        settings=settings.model_dump(mode="json"),
        checks=rows.checks | train.checks,
    )
