"""Cases, completions and reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

from llmops.records.data import Message, ToolCall
from llmops.records.models import EngineSignature
from llmops.schema import JsonDict, Record, digest_of

Better = Literal["higher", "lower"]
"""Which way a metric improves."""


@dataclass(frozen=True)
class Case:
    """One evaluation prompt with what is expected of the answer.

    `messages` is the conversation up to the turn that is answered; each of `follow_ups` is a user turn put after the
    answer before it, and the last answer is the one that is scored. `digest` aligns systems. `group` is the cluster
    key, `slices` says which named parts of the suite the case belongs to (`{"language": "en"}`); cases with the same
    `pair` differ only in something that must not matter.
    """

    messages: tuple[Message, ...]
    references: tuple[str, ...]
    group: str
    source: str
    follow_ups: tuple[str, ...] = ()
    tools: str | None = None  # canonical JSON of a list in OpenAI's form
    expected: JsonDict = field(
        default_factory=dict
    )  # what metrics without references hold the answer against
    slices: dict[str, str] = field(default_factory=dict)
    pair: str | None = None

    @cached_property
    def digest(self) -> str:
        """Digest of what is asked and what is expected; where a case stands in the suite is not part of it."""
        asked: JsonDict = {
            "messages": [m.spelling for m in self.messages],
            "references": list(self.references),
        }
        more = {"follow_ups": list(self.follow_ups), "tools": self.tools, "expected": self.expected}
        return digest_of(asked | {name: value for name, value in more.items() if value})

    @property
    def labels(self) -> JsonDict:
        """What analyses group cases by; a suite's digest covers it."""
        return {"group": self.group, "slices": self.slices, "pair": self.pair}


@dataclass(frozen=True)
class Completion:
    """One system's answer to one case. `status` errored is never a score.

    `sample` counts the answers to one case from 0. Of a conversation of several turns `text` is the last answer and
    `earlier` holds those before it; tokens and latency are those of all turns. `reference_logprob` is the sum of the
    natural logs that the system gives the tokens of the case's first reference and the end token after it, where a
    suite asks for it. A `cached` answer was given in an earlier session, its `origin`, and `latency_s` measured there.
    """

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
    sample: int = 0
    earlier: tuple[str, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    reference_logprob: float | None = None
    n_reference_tokens: int | None = None
    cached: bool = False
    origin: str | None = None


@dataclass(frozen=True)
class MetricResult:
    """A metric of one report: value with its two-sided interval, both on the metric's own scale (`unit`)."""

    value: float
    low: float
    high: float
    level: float
    signature: str
    better: Better = "higher"
    unit: str = "points"


@dataclass(frozen=True)
class Report(Record):
    """One system's results on one suite in one engine session, with all that could change the numbers.

    `invalid` lists reasons why the report is no evidence (a wrong adapter answered, cases errored ...). `cluster` is
    the suite's, for whoever has the report and not the suite.
    """

    schema: ClassVar[str] = "llmops.report/2"
    later: ClassVar[tuple[str, ...]] = ("cluster",)
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
    n_samples: int  # completions a case
    n_errored: int  # cases with a sample that errored
    metrics: dict[str, MetricResult]
    invalid: tuple[str, ...]
    created_at: str
    n_cached: int = 0  # completions that earlier sessions gave
    cached_from: tuple[str, ...] = ()  # these sessions
    cluster: str | None = None  # group, where cases of one are alike
