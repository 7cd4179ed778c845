"""Rows of tables as JSON objects: an empty cell is no field, and turns written as JSON text are turns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from llmops.data.formats.turns import is_turns
from llmops.schema import JsonDict

AS_JSON = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "history")
"""Columns whose text may be a JSON list; `tools` is read as text anyway."""


def row_of_cells(cells: Mapping[str, object]) -> JsonDict:
    """The fields of a table's row.

    Args:
        cells: values by column; None, NaN and empty text are empty. Inside lists and objects only None is: Parquet
            gives every object all fields that any row has.
    """
    return {str(name): _value(name, cell) for name, cell in cells.items() if not _is_empty(cell)}


def _is_empty(cell: object) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _value(name: str, cell: object) -> object:
    if not isinstance(cell, str):
        return _without_none(cell)
    if name not in AS_JSON or not cell.lstrip().startswith("["):
        return cell
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    pairs = name == "history" and isinstance(found, list)
    return found if pairs or (found and is_turns(found)) else cell


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_none(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_none(part) for part in value]
    return value
