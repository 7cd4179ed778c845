"""Answers that must be JSON: valid, or allowed by a schema. The `jsonschema` library validates; it fetches nothing.

A format (`"format": "date"`) is a note of a schema's author and is not checked.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from llmops.errors import ConfigError, DataError
from llmops.evals.metrics.binary import binary_metric, need
from llmops.evals.metrics.metric import Metric
from llmops.evals.metrics.spelling import MetricSettings, file_of
from llmops.records import Case, Completion
from llmops.schema import canonical_json, short

_FENCE = re.compile(r"```[A-Za-z]*\n(.*?)\n?```", re.DOTALL)


class JsonSchema(MetricSettings):
    """100 where the whole answer is JSON that a schema allows, else 0."""

    kind: Literal["json_schema"]
    file: str | None = None
    """The schema's file, relative to the suite's; left out, each case has its own in `expected`."""
    fenced: bool = False
    """Whether the JSON may stand in a Markdown code fence."""

    def metric(self, folder: Path) -> Metric:
        """The metric.

        Raises:
            ConfigError: the file is missing or holds no JSON schema.
        """
        settings = f"json_schema|fenced:{_yes(self.fenced)}|jsonschema:{metadata.version('jsonschema')}"
        if self.file is None:
            return binary_metric(
                self.label, lambda case, s: schema_holds(case, s, self.fenced), f"{settings}|schema:case"
            )
        path, digest = file_of(folder, self.file, "JSON schema")
        try:
            validator = _validator(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ConfigError(f"{path}: is no JSON schema ({error}); mend it") from None

        def holds(_: Case, sample: Completion) -> bool:
            return _allowed(validator, sample.text, self.fenced)

        return binary_metric(self.label, holds, f"{settings}|schema:{short(digest)}", digest)


class Json(MetricSettings):
    """100 where the whole answer is one JSON value, else 0."""

    kind: Literal["json"]
    fenced: bool = False
    """Whether it may stand in a Markdown code fence."""

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder

        def holds(_: Case, sample: Completion) -> bool:
            return _parsed(sample.text, self.fenced) is not None

        return binary_metric(self.label, holds, f"json|fenced:{_yes(self.fenced)}")


def schema_holds(case: Case, sample: Completion, fenced: bool = False) -> bool:
    """Whether the answer is JSON that the case's own schema allows.

    Raises:
        DataError: the case has no schema, or one that is none.
    """
    need(case, "json_schema", "json_schema")
    try:
        validator = _validator_of(canonical_json(case.expected["json_schema"]))
    except ValueError as error:
        raise DataError(
            f"case {case.source}: expected.json_schema is no JSON schema ({error}); mend it"
        ) from None
    return _allowed(validator, sample.text, fenced)


@lru_cache(maxsize=1024)
def _validator_of(schema: bytes) -> Any:
    return _validator(json.loads(schema))


def _validator(schema: Any) -> Any:
    """A validator of the draft that the schema names; ValueError when it is no schema."""
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    if not isinstance(schema, dict | bool):
        raise ValueError(f"it is {type(schema).__name__}")
    found = validator_for(schema, default=Draft202012Validator)
    try:
        found.check_schema(schema)
    except SchemaError as error:
        raise ValueError(error.message) from None
    return found(schema, registry=Registry())


def _allowed(validator: Any, text: str, fenced: bool) -> bool:
    from referencing.exceptions import Unresolvable

    found = _parsed(text, fenced)
    try:
        return found is not None and bool(validator.is_valid(found[0]))
    except Unresolvable as error:
        raise DataError(f"JSON schema: {error}; put what it refers to into the schema's own $defs") from None


def _parsed(text: str, fenced: bool) -> tuple[Any] | None:
    """The JSON value that the whole text is; None when it is none (NaN and Infinity are none)."""
    inner = text.strip()
    if fenced and (match := _FENCE.fullmatch(inner)):
        inner = match[1]
    try:
        return (json.loads(inner, parse_constant=_refuse),)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


JSON: dict[str, Metric] = {
    "json": Json(kind="json").metric(Path()),
    "json_schema": JsonSchema(kind="json_schema").metric(Path()),
}
