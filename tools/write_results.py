"""Write bench/RESULTS.md from the figures in bench/results/: python tools/write_results.py

Each bench/results/NAME.jsonl holds what bench/NAME.py printed, one JSON object a figure; `make bench` makes them.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Measured figures

Written by `python tools/write_results.py` from `bench/results/`; `make bench` takes every figure again. A value is the
median of its repetitions, a peer's was taken in the same run, and the ratio is ours over the peer's. Timings of
different machines do not compare; ratios nearly do.
"""


def render(folder: Path) -> str:
    """The page for the figures in `folder`."""
    parts = [HEAD]
    for path in sorted(folder.glob("*.jsonl")):
        figures = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        parts.append(_section(path.stem, [f for f in figures if "figure" in f]))
    return "\n".join(parts)


def _section(name: str, figures: list[dict[str, Any]]) -> str:
    source = ast.parse((ROOT / "bench" / f"{name}.py").read_text())
    said = (ast.get_docstring(source) or "").splitlines()[0]
    rows = [f"| {' | '.join(_cells(figure))} |" for figure in figures]
    signs = {_signature(figure): None for figure in figures if "signature" in figure}
    table = ["| figure | value | peer | its value | ratio | n |", "|---|---|---|---|---|---|", *rows]
    return "\n".join([f"## {name}", "", said, "", *table, "", *(f"- {sign}" for sign in signs), ""])


def _cells(figure: dict[str, Any]) -> list[str]:
    unit = figure["unit"]
    if figure["value"] is None:
        return [figure["figure"], f"unmeasured: {figure['unmeasured']}", "", "", "", ""]
    ours = f"{_number(figure['value'])} {unit}"
    if "peer" not in figure:
        return [figure["figure"], ours, "", "", "", str(figure["n"])]
    theirs = f"{_number(figure['peer_value'])} {unit}"
    return [figure["figure"], ours, figure["peer"], theirs, _number(figure["ratio"]), str(figure["n"])]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _signature(figure: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figure["signature"].items())


if __name__ == "__main__":
    (ROOT / "bench" / "RESULTS.md").write_text(render(ROOT / "bench" / "results"))
