"""Sessions made without an engine: suites, answers and results that a test decides, and a metric in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmops.evals.evidence import Result, n_errored_cases, results_of, scores_of
from llmops.evals.metrics import METRICS, Metric
from llmops.evals.metrics.metric import Answers, mean_of_samples
from llmops.evals.reports.comparison import Evaluated
from llmops.evals.suite import Suite, SuiteConfig
from llmops.records import Case, Completion, EngineSignature, Message, Report

ENGINE = EngineSignature("transformers", "5.19.0", "float32", None, "cpu", "b" * 64, 512)
SYSTEMS = {"base@bbbbbbbbbbbb": "b" * 64, "docs@aaaaaaaaaaaa": "a" * 64}
Answering = Callable[[str, int, int], Completion | str | None]
"""What a system (by name) says to case i as sample k: a completion, a text, or None where it errored."""


def seconds(name: str = "wait") -> Metric:
    """The latency of an answer: in seconds, lower is better, no reference needed."""

    def measure(answers: Answers) -> Any:
        return mean_of_samples(answers, np.array([s.latency_s for a in answers for s in a.samples]))

    return Metric(
        name, "mean", measure, lambda answers: f"{name}|v:1", better="lower", unit="s", needs_references=False
    )


def case(i: int, **changes: Any) -> Case:
    """`question i` -> `answer i`, two cases a group."""
    usual: dict[str, Any] = {
        "messages": (Message("user", f"question {i}"),),
        "references": (f"answer {i}",),
        "group": f"g{i // 2}",
        "source": f"cases.jsonl:{i + 1}",
    }
    return Case(**usual | changes)


def completion(case: Case, system: str, text: str, **changes: Any) -> Completion:
    """An answer of a known system."""
    usual: dict[str, Any] = {
        "case": case.digest, "system": system, "status": "answered", "text": text, "finish_reason": "stop",
        "n_prompt_tokens": 5, "n_completion_tokens": len(text.split()), "latency_s": 0.25,
        "answered_by": SYSTEMS.get(system, "d" * 64), "prompt_contract": "c" * 64,
    }  # fmt: skip
    return Completion(**usual | changes)


def evaluated(
    cases: Sequence[Case],
    answering: Answering,
    metrics: Sequence[Metric] | None = None,
    systems: dict[str, str] | None = None,
    **settings: Any,
) -> Evaluated:
    """What a session over these cases leaves; exact match is the metric unless told otherwise."""
    metrics = tuple(metrics or [METRICS["exact_match"]])
    config = SuiteConfig.model_validate(
        {
            "name": "questions",
            "cases": {"kind": "file", "path": "cases.jsonl"},
            "metrics": ["exact_match"],
            "decoding": {"temperature": 0, "max_tokens": 16},
            **settings,
        }
    )
    suite = Suite(config, tuple(cases), metrics)
    results = [_result(suite, answering, name, model) for name, model in (systems or SYSTEMS).items()]
    return Evaluated(suite, tuple(results), "evals/suites/questions.yaml")


def _result(suite: Suite, answering: Answering, system: str, model: str) -> Result:
    def said(i: int, case: Case, sample: int) -> Completion:
        found = answering(system, i, sample)
        if isinstance(found, Completion):
            return found
        if found is None:
            return completion(
                case, system, "", status="errored", finish_reason=None, error="HTTP 400: no", sample=sample
            )
        return completion(case, system, found, sample=sample)

    n = suite.config.samples
    samples = tuple(tuple(said(i, c, k) for k in range(n)) for i, c in enumerate(suite.cases))
    scores = scores_of(suite.metrics, suite.cases, samples)
    report = Report(
        suite=suite.config.name, suite_digest=suite.digest, system=system, model=model, base="b" * 64,
        prompt_contract="c" * 64, engine=ENGINE, session="eval-1", decoding={"temperature": 0, "max_tokens": 16},
        cases=suite.cases_digest, completions="e" * 64, n_cases=len(suite.cases), n_samples=n,
        n_errored=n_errored_cases(samples), metrics=results_of(scores), invalid=(),
        created_at="2026-11-26T01:02:03.004Z",
    )  # fmt: skip
    return Result(report, samples, scores)
