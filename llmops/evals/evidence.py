"""From kept completions to scores, and what is wrong with them as evidence.

Used twice on the same files: when a report is made, and again when a gate decides on it, which trusts no
stored number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmops.data import load_pool
from llmops.errors import InvalidEvidence, LlmopsError
from llmops.evals.metrics import Answer, Metric, Scores, interval, score
from llmops.ratings.preferences import load_pairs
from llmops.records import (
    AdapterRecord,
    Case,
    Completion,
    DatasetSnapshot,
    EngineSignature,
    Lineage,
    Message,
    MetricResult,
    PreferenceSnapshot,
    Report,
)
from llmops.registry.adapters import Registry
from llmops.schema import digest_of, short
from llmops.stats import Labels

# Each bound of a report's intervals; together they are the two-sided interval at REPORT_LEVEL.
BOUND_LEVEL = 0.95
REPORT_LEVEL = 0.9


Samples: TypeAlias = tuple[Completion, ...]
"""One system's completions of one case, sample 0 first."""


@dataclass(frozen=True, eq=False)
class Result:
    """One system's samples of each case in the suite's order, their scores, and its report."""

    report: Report
    samples: tuple[Samples, ...]
    scores: dict[str, Scores]


def scores_of(
    metrics: Sequence[Metric], cases: Sequence[Case], samples: Sequence[Samples]
) -> dict[str, Scores]:
    """Scores of each metric over the answered cases; none when fewer than two were answered.

    `samples[i]` belongs to `cases[i]`; a case counts as answered when all its samples are.
    """
    answers = [Answer(case, own) for case, own in zip(cases, samples, strict=True) if is_answered(own)]
    return score(metrics, answers) if len(answers) >= 2 else {}


def clusters_of(clusters: Sequence[str] | None, samples: Sequence[Samples]) -> list[str] | None:
    """The cluster keys of the answered cases, which scores are of; None where cases are independent."""
    if clusters is None:
        return None
    return [key for key, own in zip(clusters, samples, strict=True) if is_answered(own)]


def is_answered(samples: Samples) -> bool:
    """Whether every sample of a case was answered."""
    return all(sample.status == "answered" for sample in samples)


def results_of(scores: dict[str, Scores], clusters: Labels | None = None) -> dict[str, MetricResult]:
    """Each metric's value with its two-sided interval; `clusters` are those of the answered cases."""
    results = {}
    for name, found in scores.items():
        bounds = interval(found, BOUND_LEVEL, clusters)
        results[name] = MetricResult(
            found.value, bounds.low, bounds.high, REPORT_LEVEL, found.signature, found.better, found.unit
        )
    return results


def completion_faults(
    samples: Sequence[Samples], digest: str, prompt_contract: str, max_errored_frac: float
) -> list[str]:
    """Why completions are no evidence about the system with these digests; empty when they are."""
    answered = [c for own in samples for c in own if c.status == "answered"]
    faults = _mismatches("answers came from", (c.answered_by for c in answered), digest)
    faults += _mismatches(
        "answers were made under prompt contract", (c.prompt_contract for c in answered), prompt_contract
    )
    n_errored = n_errored_cases(samples)
    if n_errored > max_errored_frac * len(samples):
        first = next(c for own in samples for c in own if c.status == "errored")
        faults.append(
            f"{n_errored} of {len(samples)} cases errored (allowed: {max_errored_frac:.1%}), "
            f"first: {first.error}"
        )
    if len(samples) - n_errored < 2:
        faults.append(
            f"{len(samples) - n_errored} cases were answered; nothing can be estimated from fewer than 2"
        )
    return faults


def n_errored_cases(samples: Sequence[Samples]) -> int:
    """Cases with a sample that errored."""
    return sum(not is_answered(own) for own in samples)


def _mismatches(what: str, found: Iterable[str | None], expected: str) -> list[str]:
    counts = Counter(value for value in found if value != expected)
    return [
        f"{n} {what} {short(value) if value else 'a source that does not say'}, not {short(expected)}"
        for value, n in sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    ]


def engine_fault(before: EngineSignature, after: EngineSignature, when: str) -> list[str]:
    """The first part in which two engine signatures differ, in words; empty when they are equal."""
    old, new = before.to_pairs(), after.to_pairs()
    return [
        f"the engine changed {when}: {part} {old[part]} -> {new[part]}"
        for part in old
        if old[part] != new[part]
    ][:1]


def leak_fault(registry: Registry, record: AdapterRecord, cases: Sequence[Case]) -> list[str]:
    """How many cases stand among the prompts an adapter was trained on; empty when none do.

    Its whole ancestry counts: datasets, preferences, and the adapters its training began with. Fails closed: an adapter
    whose training data is named but cannot be read is no evidence.
    """
    try:
        trained = {prompt_digest(messages) for messages in trained_messages(registry, record)}
    except LlmopsError as error:
        return [f"whether cases were trained on cannot be checked: {error}"]
    n = sum(prompt_digest(case.messages) in trained for case in cases)
    return [f"{n} of {len(cases)} cases stand in the adapter's training data"] if n else []


def prompt_digest(messages: Sequence[Message]) -> str:
    """Digest of what is asked, whatever is answered or expected."""
    return digest_of([m.spelling for m in messages])


def trained_messages(registry: Registry, record: AdapterRecord) -> Iterator[Sequence[Message]]:
    """All prompts behind an adapter's weights.

    Raises:
        LlmopsError: something on the way cannot be read.
    """
    waiting, seen = [record.adapter], set[str]()
    while waiting:
        adapter = waiting.pop()
        if adapter in seen:
            continue
        seen.add(adapter)
        for lineage in _lineages(registry, adapter):
            if lineage.dataset is not None:
                snapshot = registry.store.get_record(DatasetSnapshot, lineage.dataset)
                for row in load_pool(registry.store, snapshot, "train"):
                    yield row.messages[:-1]
            if lineage.preferences is not None:
                preferences = registry.store.get_record(PreferenceSnapshot, lineage.preferences)
                for pair in load_pairs(registry.store, preferences):
                    yield pair.messages
            if lineage.continues is not None:
                waiting.append(lineage.continues)


def _lineages(registry: Registry, adapter: str) -> list[Lineage]:
    """Every lineage that these weights were registered with: importing them again must not hide what they learnt.

    Raises:
        InvalidEvidence: the adapter is not registered, or a record of it is gone or altered.
    """
    events = registry.ledger.events("adapter.registered")
    records = {str(e.body["record"]) for e in events if e.body["adapter"] == adapter}
    if not records:
        raise InvalidEvidence(f"adapter {short(adapter)}: is not registered in this workspace; import it")
    return [registry.lineage(registry.store.get_record(AdapterRecord, digest)) for digest in sorted(records)]
