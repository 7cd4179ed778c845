"""Cases, completions and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmops.records.data import Message
from llmops.records.models import EngineSignature
from llmops.schema import JsonDict, Record, digest_of


@dataclass(frozen=True)
class Case:
    """One evaluation prompt with its references; `digest` aligns systems, `group` is the cluster key."""

    messages: tuple[Message, ...]
    references: tuple[str, ...]
    group: str
    source: str

    @property
    def digest(self) -> str:
        """Digest of what is asked and what is expected."""
        prompt = [m.spelling for m in self.messages]
        return digest_of({"messages": prompt, "references": list(self.references)})


@dataclass(frozen=True)
class Completion:
    """One system's answer to one case. `status` errored is never a score."""

    case: str  # Case.digest
    system: str
    status: Literal["answered", "errored"]
    text: str
    finish_reason: str | None
    n_prompt_tokens: int
    n_completion_tokens: int
    latency_s: float
    answered_by: str | None  # digest in the response header
    prompt_contract: str | None
    error: str | None = None


@dataclass(frozen=True)
class MetricResult:
    """A metric of one report: value with its two-sided interval, both on the metric's own scale."""

    value: float
    low: float
    high: float
    level: float
    signature: str


@dataclass(frozen=True)
class Report(Record):
    """One system's results on one suite in one engine session, with all that could change the numbers.

    `invalid` lists reasons why the report is no evidence (a wrong adapter answered, cases errored ...).
    """

    schema: ClassVar[str] = "llmops.report/1"
    suite: str  # name
    suite_digest: str
    system: str  # model name asked for at the endpoint
    model: str  # digest of the adapter, or of the base
    base: str
    prompt_contract: str
    engine: EngineSignature
    session: str  # shared by the systems that were interleaved
    decoding: JsonDict
    cases: str  # digest over the ordered case digests
    completions: str  # digest of the stored files (kind `completions`)
    n_cases: int
    n_errored: int
    metrics: dict[str, MetricResult]
    invalid: tuple[str, ...]
    created_at: str
