"""The frozen records that pass between stages: data, models, evaluation, decisions and releases.

Nothing here reads or writes files; `llmops.schema` says how a record is spelt and hashed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

from llmops.schema import JsonDict, Record, digest_of, short

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]

# ---------------------------------------------------------------- conversations and data


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One training or evaluation example: a conversation that ends with the assistant's answer.

    `group` is what pools are split by (rows of one group never land in two pools); `source` is `file:line`.
    """

    messages: tuple[Message, ...]
    group: str
    source: str


@dataclass(frozen=True)
class Dropped:
    """A row that was not kept: where it stood and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class DatasetSnapshot(Record):
    """A named dataset frozen by content. Its rows lie in the store under kind `dataset`, one JSONL file per pool."""

    schema: ClassVar[str] = "llmops.dataset/1"
    name: str
    artifact: str  # digest of the stored files
    n_rows: dict[str, int]  # by pool
    n_dropped: dict[str, int]  # by reason
    licence: str
    origin: str  # what the rows were built from, in words


# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class PromptContract(Record):
    """How a conversation becomes token ids and where an answer ends; equal digests mean equal prompts.

    `system` is the default system prompt that is put before conversations which bring none (None: none is put).
    """

    schema: ClassVar[str] = "llmops.prompt_contract/1"
    chat_template: str
    tokenizer_sha256: str
    eos_token_ids: tuple[int, ...]
    system: str | None = None

    def without_system(self) -> PromptContract:
        """The part that belongs to the base model: template, tokenizer, end tokens."""
        return replace(self, system=None)


@dataclass(frozen=True)
class Probes(Record):
    """Teacher-forced log-probabilities of fixed texts, as the trainer saw them: what an engine must reproduce.

    `token_ids[i]` has T_i tokens; `base_logprobs[i]` and `adapter_logprobs[i]` have T_i - 1 natural logs, of each token
    after the first given those before it.
    """

    schema: ClassVar[str] = "llmops.probes/1"
    token_ids: tuple[tuple[int, ...], ...]
    base_logprobs: tuple[tuple[float, ...], ...]
    adapter_logprobs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Lineage(Record):
    """Where an adapter comes from: everything needed to make it again or to say why it cannot be."""

    schema: ClassVar[str] = "llmops.lineage/1"
    origin: Literal["trained", "imported"]
    recipe: JsonDict  # resolved; {} for an imported adapter
    recipe_digest: str
    dataset: str | None  # DatasetSnapshot digest
    n_rows: dict[str, int]  # kept and dropped, as training saw them
    git_sha: str | None
    git_diff_sha256: str | None  # of git.diff beside the lineage; None for a clean tree or no repository
    seeds: dict[str, int]
    packages: dict[str, str]  # name -> version, all installed
    hardware: dict[str, str]
    tracking_run: str | None  # MLflow run id
    metrics: dict[str, float]  # last values: loss, n_steps, train_s ...


@dataclass(frozen=True)
class AdapterRecord(Record):
    """A registered adapter: its files (store kind `adapter`), its base, contract, probes and lineage by digest.

    `digest` names the adapter everywhere; the record itself is found through the ledger.
    """

    schema: ClassVar[str] = "llmops.adapter/1"
    name: str
    adapter: str  # digest of the adapter's files
    base: str  # digest of the base model's files
    base_ref: str  # the logical id a recipe names
    prompt_contract: str
    probes: str
    lineage: str
    lora_rank: int

    @property
    def model_name(self) -> str:
        """The immutable name at the endpoint, `name@digest12`."""
        return f"{self.name}@{short(self.adapter)}"


@dataclass(frozen=True)
class EngineSignature:
    """What about an engine can change an answer; equal signatures mean comparable answers."""

    engine: str  # vllm | transformers
    version: str
    dtype: str
    quantization: str | None
    device: str
    base: str  # digest
    max_model_tokens: int

    def to_pairs(self) -> JsonDict:
        """Field names and values, for messages and headers."""
        return asdict(self)


# ---------------------------------------------------------------- evaluation


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
        prompt = [[m.role, m.content] for m in self.messages]
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


@dataclass(frozen=True)
class Check:
    """One line of a decision: a metric's paired difference (candidate - baseline) against its threshold."""

    metric: str
    kind: Literal["non_inferior", "superior"]
    threshold: float
    candidate: float
    baseline: float
    difference: float
    low: float
    high: float
    level: float
    n_cases: int
    verdict: Verdict
    n_needed: int | None
    method: str


@dataclass(frozen=True)
class Decision(Record):
    """What a gate said about a candidate against a baseline, on which evidence."""

    schema: ClassVar[str] = "llmops.decision/1"
    gate: str  # name
    gate_digest: str
    public_name: str
    candidate: str  # adapter digest
    baseline: str  # digest of the champion, or of the base
    base: str
    reports: tuple[str, str]  # report digests: candidate, baseline
    engine: EngineSignature | None  # None when the reports disagree
    verdict: Verdict
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    created_at: str


@dataclass(frozen=True)
class Release(Record):
    """A request to point a public name at an adapter, bound to its evidence and to the ledger's head at that time."""

    schema: ClassVar[str] = "llmops.release/1"
    public_name: str
    kind: Literal["promote", "rollback", "override"]
    adapter: str
    replaces: str | None  # adapter digest of the champion before
    decision: str | None  # Decision digest; None only for an override
    reason: str | None
    requested_by: str
    ledger_seq: int
    ledger_head: str
    created_at: str
