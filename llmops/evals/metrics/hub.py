"""Any metric of Hugging Face's `evaluate` library, from a script beside the suite or by its name on the hub.

Every sample is computed alone, so that there is a number for each case to compare systems by; the number that is
reported is their mean. Where the metric over all samples is something else (macro F1, corpus BLEU), scoring stops and
says so, unless the suite declares that the mean is what it wants.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from llmops.errors import ConfigError, DataError
from llmops.evals.metrics.metric import (
    POINTS,
    Answers,
    Measured,
    Metric,
    mean_of_samples,
    n_references,
    references_of,
    texts_of,
)
from llmops.evals.metrics.spelling import MetricSettings
from llmops.records import Better
from llmops.schema import JsonDict, short


class Evaluate(MetricSettings):
    """A metric of the `evaluate` library."""

    kind: Literal["evaluate"]
    path: str
    """A script or its folder, relative to the suite's file; else a name on the hub."""
    value: str | None = None
    """Which of the numbers it gives; may be left out where it gives one."""
    better: Better = "higher"
    """Which way it improves."""
    unit: str = Field(default="score", min_length=1, max_length=40)
    """What its numbers are; `points` must lie between 0 and 100, after `scale`."""
    scale: float = Field(default=1.0, gt=0)
    """Its numbers are multiplied by this."""
    options: JsonDict = Field(default_factory=dict)
    """Passed to the metric's `compute`."""
    references: Literal["one", "all", "none"] = "one"
    """What it takes for a case: a text, a list of texts, or nothing."""
    over: Literal["all", "cases"] = "all"
    """`all`: the metric of all samples, which must be the mean of theirs; `cases`: that mean, whatever the first is."""

    @property
    def usual_name(self) -> str:
        """The number's name, else the script's or the hub's."""
        return self.value or Path(self.path).stem

    def metric(self, folder: Path) -> Metric:
        """The metric, its script loaded.

        Raises:
            ConfigError: the package is missing, or there is no such script here or on the hub.
        """
        local = folder / self.path
        script = local / f"{local.name}.py" if local.is_dir() else local
        loaded = _load(str(script), script.read_bytes()) if script.is_file() else _load(self.path, b"")
        digest = _digest(loaded)
        return Metric(
            self.label,
            "mean",
            _Scored(self, loaded).measure,
            partial(self._signature, digest),
            better=self.better,
            unit=self.unit,
            needs_references=self.references != "none",
            digest=digest,
        )

    def _signature(self, digest: str, answers: Answers) -> str:
        options = "".join(f"|{name}:{value}" for name, value in sorted(self.options.items()))
        return (
            f"evaluate:{Path(self.path).stem}|value:{self.value or 'only'}|nrefs:{n_references(answers) or 'var'}"
            f"|references:{self.references}|over:{self.over}|scale:{self.scale:g}{options}|script:{short(digest)}"
            f"|version:{metadata.version('evaluate')}"
        )


@cache
def _load(path: str, content: bytes) -> Any:
    """The metric of a script with this content, or of that name on the hub."""
    del content  # a script that was changed is another one
    try:
        import evaluate
    except ImportError:
        raise ConfigError(f"metric {path}: needs a package; pip install 'llmops[evaluate]'") from None
    evaluate.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # the hub is told of nothing
    importlib.invalidate_caches()  # the library imports files that it has just written
    try:
        return evaluate.load(path, keep_in_memory=True)
    except Exception as error:  # a script may raise anything, and so does the library
        raise ConfigError(
            f"metric {path}: no script beside the suite, and none from the hub, that loads "
            f"({type(error).__name__}: {_first_line(error)}); give the path of a script, or the name of a metric on a "
            "hub that can be reached"
        ) from error


def _digest(loaded: Any) -> str:
    """Over the script and the files it imports from beside it, which the library copies into one folder."""
    folder = Path(inspect.getfile(type(loaded))).parent
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


class _Scored:
    """Calls the metric; what one answer scores is remembered, as a page and a gate score the same answers again."""

    def __init__(self, config: Evaluate, loaded: Any) -> None:
        self._config = config
        self._loaded = loaded
        self._known: dict[tuple[str, tuple[str, ...]], float] = {}

    def measure(self, answers: Answers) -> Measured:
        """Its numbers of all samples; DataError where one is none, or the whole is no mean of them."""
        config = self._config
        several = next((a.case for a in answers if len(a.case.references) > 1), None)
        if config.references == "one" and several is not None:
            raise DataError(
                f"score: case {several.source} has {len(several.references)} references and {config.label} takes one; "
                "set `references: all` if it takes lists"
            )
        texts, references = texts_of(answers), references_of(answers)
        sources = [answer.case.source for answer in answers for _ in answer.samples]
        each = [self._one(*one) for one in zip(sources, texts, references, strict=True)]
        found = mean_of_samples(answers, np.array(each, dtype=np.float64))
        if config.over == "all":
            whole = _value(config, self._loaded, "all cases", texts, references)
            if not math.isclose(whole, found.value, rel_tol=1e-6, abs_tol=1e-9):
                raise DataError(
                    f"score: {config.label} of all cases is {whole:g}, and the mean of the cases' own {found.value:g}: "
                    "it is no mean, so nothing is known of its error; set `over: cases` to report the mean"
                )
        return found

    def _one(self, source: str, text: str, references: tuple[str, ...]) -> float:
        key = (text, references)
        if key not in self._known:
            self._known[key] = _value(self._config, self._loaded, f"case {source}", [text], [references])
        return self._known[key]


def _value(
    config: Evaluate, loaded: Any, where: str, texts: list[str], references: list[tuple[str, ...]]
) -> float:
    inputs: JsonDict = {"predictions": texts}
    if config.references != "none":
        inputs["references"] = [list(each) if config.references == "all" else each[0] for each in references]
    try:
        result = loaded.compute(**inputs, **config.options)
    except Exception as error:  # somebody's script may raise anything; its own words are the message
        raise DataError(
            f"score: {config.label}: failed on {where} ({type(error).__name__}: {_first_line(error)}); "
            "mend its options or its script"
        ) from error
    numbers = result if isinstance(result, dict) else {}
    chosen = numbers.get(config.value) if config.value else next(iter(numbers.values()), None)
    if config.value not in numbers if config.value else len(numbers) != 1:
        raise DataError(
            f"score: {config.label} gives {', '.join(map(str, numbers))}; set `value` to one of them"
        )
    number = chosen.item() if isinstance(chosen, np.generic) else chosen
    value = number * config.scale if isinstance(number, int | float) else math.nan
    if not math.isfinite(value) or (config.unit == POINTS and not 0 <= value <= 100):
        limits = " from 0 to 100, as points are" if config.unit == POINTS else ""
        raise DataError(
            f"score: {config.label}: gave {chosen!r} for {where}; it must be a finite number{limits}"
        )
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
