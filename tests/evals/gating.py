"""Both systems' scores made by hand, for gates that are decided without an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmops.evals.compare import Paired
from llmops.evals.gate import GateConfig
from llmops.evals.gate.lines import Line
from llmops.evals.gate.metric_checks import Comparisons, metric_lines
from llmops.evals.gate.slice_checks import part_lines
from llmops.evals.metrics import Scores
from llmops.records import Case, Message


def scores(per_case: Sequence[float], name: str = "m", **settings: Any) -> Scores:
    """A metric's scores; a mean over cases unless said otherwise."""
    x = np.asarray(per_case, dtype=np.float64)
    return Scores(**{"metric": name, "kind": "mean", "value": float(x.mean()), "per_case": x, "stats": None,
                     "signature": f"{name}|v1", **settings})  # fmt: skip


def cases(n: int, **labels: Sequence[Any]) -> tuple[Case, ...]:
    """n cases; `pair` and any other name (a slice) give one label a case."""
    found = []
    for i in range(n):
        slices = {key: str(values[i]) for key, values in labels.items() if key != "pair"}
        pair = str(labels["pair"][i]) if "pair" in labels else None
        found.append(Case((Message("user", f"q{i}"),), ("a",), f"g{i}", f"c:{i}", slices=slices, pair=pair))
    return tuple(found)


def paired(
    a: Scores | dict[str, Scores], b: Scores | dict[str, Scores], of: Sequence[Case] | None = None
) -> Paired:
    """A comparison of the baseline's scores `a` with the candidate's `b`."""
    theirs, ours = (x if isinstance(x, dict) else {x.metric: x} for x in (a, b))
    n = len(next(iter(theirs.values())).per_case)
    return Paired(tuple(of or cases(n)), theirs, ours)


def gate(**asked: Any) -> GateConfig:
    """A gate on one suite, `s`."""
    return GateConfig.model_validate(
        {"name": "g", "public_name": "docs", "suites": {"s": "s.yaml"}, "min_cases": 2, **asked}
    )


def lines(config: GateConfig, **suites: Paired) -> list[Line]:
    """What a gate says to comparisons by suite."""
    about = Comparisons(config, suites)
    return metric_lines(about) + part_lines(about)
