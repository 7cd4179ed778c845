"""Yes-or-no metrics that need no reference: patterns, substrings, tool calls, limits.

What an answer is held against stands in the suite's mapping, or for each case in `expected`:

| key of `expected` | holds when |
|---|---|
| `regex` | the pattern, or each of a list, is found |
| `contains`, `not_contains` | the text, or each of a list, is in the answer, or is not |
| `json_schema` | the answer is JSON that the schema (JSON Schema 2020-12 unless it names another) allows |
| `tool_calls` | the answer calls exactly these functions |

The word `expected` asks for all that a case has of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmops.errors import DataError
from llmops.evals.metrics.binary import Holds, binary_metric, need
from llmops.evals.metrics.calls import Arguments, Order, calls_match, wanted_calls
from llmops.evals.metrics.json_output import schema_holds
from llmops.evals.metrics.metric import Metric
from llmops.evals.metrics.spelling import MetricSettings
from llmops.records import Case, Completion
from llmops.schema import digest_of, short


class Regex(MetricSettings):
    """100 where the pattern is found in the answer, else 0."""

    kind: Literal["regex"]
    pattern: str | None = None
    """A regular expression of Python's `re`, searched for anywhere; left out, each case has its own in `expected`."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}; correct it") from None
        return pattern

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder
        if self.pattern is None:
            return binary_metric(self.label, _regex_holds, "regex|pattern:case")
        pattern = re.compile(self.pattern)
        return binary_metric(
            self.label,
            lambda _, sample: pattern.search(sample.text) is not None,
            f"regex|pattern:{self.pattern}",
        )


class Contains(MetricSettings):
    """100 where the answer holds the texts it must and none that it must not, else 0."""

    kind: Literal["contains"]
    all: tuple[str, ...] = ()
    """Each of these must be in it."""
    any: tuple[str, ...] = ()
    """One of these must be in it."""
    none: tuple[str, ...] = ()
    """None of these may be in it."""
    ignore_case: bool = False
    """Whether upper and lower case are the same."""

    @model_validator(mode="after")
    def _says_something(self) -> Contains:
        if "" in (*self.all, *self.any, *self.none):
            raise ValueError("an empty text is in every answer; leave it out")
        return self

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read. Without texts of its own each case has them in `expected`."""
        del folder
        fold: Callable[[str], str] = str.casefold if self.ignore_case else str
        case = "ignored" if self.ignore_case else "mixed"
        if not (self.all or self.any or self.none):
            return binary_metric(
                self.label,
                lambda case, sample: _contains_holds(case, sample, fold),
                f"contains|texts:case|case:{case}",
            )
        wanted, one_of, banned = ([fold(text) for text in texts] for texts in (self.all, self.any, self.none))

        def holds(_: Case, sample: Completion) -> bool:
            text = fold(sample.text)
            some = not one_of or any(t in text for t in one_of)
            return some and all(t in text for t in wanted) and not any(t in text for t in banned)

        texts = short(digest_of([self.all, self.any, self.none]))
        return binary_metric(self.label, holds, f"contains|texts:{texts}|case:{case}")


class ToolCalls(MetricSettings):
    """100 where the answer calls the functions of `expected.tool_calls`, else 0."""

    kind: Literal["tool_calls"]
    order: Order = "any"
    """Whether the calls may come in any order."""
    arguments: Arguments = "same"
    """Whether the arguments must be equal as JSON, or only the functions' names count."""

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder

        def holds(case: Case, sample: Completion) -> bool:
            need(case, self.label, "tool_calls")
            return calls_match(wanted_calls(case), sample.tool_calls, self.order, self.arguments)

        return binary_metric(self.label, holds, f"tool_calls|order:{self.order}|arguments:{self.arguments}")


class Limits(MetricSettings):
    """100 where the answer keeps to all limits, else 0."""

    kind: Literal["limits"]
    min_chars: int | None = Field(default=None, ge=0)
    """Fewest characters, outer white space left out."""
    max_chars: int | None = Field(default=None, ge=0)
    """Most characters, outer white space left out."""
    min_words: int | None = Field(default=None, ge=0)
    """Fewest words, parted by white space."""
    max_words: int | None = Field(default=None, ge=0)
    """Most words, parted by white space."""
    max_tokens: int | None = Field(default=None, ge=0)
    """Most tokens, as the engine counts them."""
    max_latency_s: float | None = Field(default=None, gt=0)
    """Most seconds from question to whole answer."""
    ended: bool = False
    """Whether the answer must have come to its own end, not been cut off."""

    @model_validator(mode="after")
    def _says_something(self) -> Limits:
        if not self._spelt():
            raise ValueError("no limit is set; set one of " + ", ".join(list(type(self).model_fields)[2:]))
        for unit in ("chars", "words"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{unit} {least} is above max_{unit} {most}; correct one of them")
        return self

    def _spelt(self) -> dict[str, Any]:
        return self.model_dump(exclude={"name", "kind"}, exclude_defaults=True)

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder
        spelt = "|".join(f"{name}:{value}" for name, value in self._spelt().items())
        metric = binary_metric(self.label, self._holds, f"limits|{spelt}")
        return replace(metric, needs_latency=self.max_latency_s is not None)

    def _holds(self, _: Case, sample: Completion) -> bool:
        text = sample.text.strip()
        sizes = {
            "chars": len(text),
            "words": len(text.split()),
            "tokens": sample.n_completion_tokens,
            "latency_s": sample.latency_s,
        }
        limits = self._spelt()
        below = any(sizes[unit] < limits.get(f"min_{unit}", 0) for unit in ("chars", "words"))
        above = any(size > limits.get(f"max_{unit}", size) for unit, size in sizes.items())
        return not (below or above or (self.ended and sample.finish_reason == "length"))


class Expected(MetricSettings):
    """100 where the answer does all that its case has in `expected`, else 0."""

    kind: Literal["expected"]
    other: tuple[str, ...] = ()
    """Keys of `expected` that are read by something else, such as a function of the suite."""

    def metric(self, folder: Path) -> Metric:
        """The metric; `folder` is not read."""
        del folder
        checks: dict[str, Holds] = {
            "regex": _regex_holds,
            "contains": lambda case, sample: _contains_holds(case, sample, str),
            "not_contains": lambda case, sample: _contains_holds(case, sample, str),
            "json_schema": schema_holds,
            "tool_calls": lambda case, sample: calls_match(
                wanted_calls(case), sample.tool_calls, "any", "same"
            ),
        }

        def holds(case: Case, sample: Completion) -> bool:
            asked = [key for key in case.expected if key not in self.other]
            unknown = next((key for key in asked if key not in checks), None)
            if unknown is not None:
                raise DataError(
                    f"case {case.source}: expected.{unknown} is read by no metric; use one of {', '.join(checks)}, "
                    "or name it under `other` of the metric `expected`"
                )
            if not asked:
                raise DataError(
                    f"case {case.source} has nothing in `expected`; give it one of {', '.join(checks)}"
                )
            found = [
                checks[key](case, sample) for key in asked
            ]  # all: a fault of any is seen, whatever others say
            return all(found)

        return binary_metric(self.label, holds, f"expected|jsonschema:{metadata.version('jsonschema')}")


def _regex_holds(case: Case, sample: Completion) -> bool:
    found = [_found(case, pattern, sample.text) for pattern in _texts(case, "regex")]
    return all(found)


def _found(case: Case, pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error as error:
        raise DataError(
            f"case {case.source}: expected.regex {pattern!r} is no regular expression: {error}; correct it"
        ) from None


def _contains_holds(case: Case, sample: Completion, fold: Callable[[str], str]) -> bool:
    keys = [key for key in ("contains", "not_contains") if key in case.expected]
    need(case, "contains", *(keys or ["contains"]))
    text = fold(sample.text)
    texts = {key: _texts(case, key) for key in keys}
    return all((fold(wanted) in text) == (key == "contains") for key in keys for wanted in texts[key])


def _texts(case: Case, key: str) -> list[str]:
    need(case, key, key)
    spelt = case.expected[key]
    texts = [spelt] if isinstance(spelt, str) else spelt
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise DataError(f"case {case.source}: expected.{key} is {spelt!r}; give a text or a list of texts")
    return texts


CHECKS: dict[str, Metric] = {
    "regex": Regex(kind="regex").metric(Path()),
    "contains": Contains(kind="contains").metric(Path()),
    "tool_calls": ToolCalls(kind="tool_calls").metric(Path()),
    "expected": Expected(kind="expected").metric(Path()),
}
