"""How benchmarks say a figure: one JSON object a line, with its peer of the same run and all that could change it."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any


def signature(*packages: str, **settings: Any) -> dict[str, Any]:
    """What a figure depends on: the machine, the versions of `packages`, and the settings of the run."""
    return {
        "processor": _processor(),
        "n_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **settings,
    }


def say(
    figure: str, values: list[float], unit: str, sign: dict[str, Any], peers: dict[str, list[float]]
) -> None:
    """Print the median of `values` beside the median of each peer's, and their ratio (ours / peer).

    Args:
        figure: what was measured.
        values: one a repetition.
        unit: of values and peers.
        sign: from `signature`.
        peers: values of what it is compared with, by name; empty when there is nothing to compare with.
    """
    ours = median(values)
    for peer, theirs in peers.items() or {"": []}.items():
        line: dict[str, Any] = {"figure": figure, "value": ours, "unit": unit, "n": len(values)}
        if theirs:
            line |= {"peer": peer, "peer_value": median(theirs), "ratio": ours / median(theirs)}
        print(json.dumps({**line, "signature": sign}), flush=True)


def unmeasured(figure: str, unit: str, why: str) -> None:
    """Say that a figure has no value on this machine, and why."""
    print(json.dumps({"figure": figure, "value": None, "unit": unit, "unmeasured": why}), flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
