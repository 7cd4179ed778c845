"""The frozen records that pass between stages, and the canonical form they are hashed in.

A record knows its schema (`llmops.<record>/<major>`); one with an unknown name or major is refused, never guessed at.
Nothing here reads or writes files. Digests are lower-case hex sha256 of canonical JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, cast

from llmops.errors import InvalidEvidence

JsonDict = dict[str, Any]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]
SHORT_DIGEST = 12

Progress = Callable[[int, int, str], None]
"""How long work reports itself: (done, total, note); total 0 when it is not known."""


def no_progress(done: int, total: int, note: str) -> None:
    """Report nowhere."""


def canonical_json(value: object) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces, UTF-8, no NaN or infinity.

    >>> canonical_json({"b": 1, "a": "é"}).decode()
    '{"a":"é","b":1}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(value: object) -> str:
    """sha256 (hex, 64 characters) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def short(digest: str) -> str:
    """The first 12 characters of a digest, as they stand in model names."""
    return digest[:SHORT_DIGEST]


class Record:
    """Base of all stored records: `schema`, conversion to and from plain JSON values, and a digest."""

    schema: ClassVar[str]

    def to_dict(self) -> JsonDict:
        """Plain JSON values (tuples become lists), with the schema first."""
        plain: JsonDict = json.loads(canonical_json(dataclasses.asdict(self)))  # type: ignore[call-overload]
        return {"schema": self.schema, **plain}

    def digest(self) -> str:
        """The digest of the record's canonical JSON."""
        return digest_of(self.to_dict())


R = TypeVar("R", bound=Record)


@cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def load_record(cls: type[R], data: JsonDict) -> R:
    """The record of class `cls` that `data` spells.

    Raises:
        InvalidEvidence: another schema or major version, an unknown field, or a value of the wrong type.
    """
    from pydantic import ValidationError

    found = data.get("schema")
    if found != cls.schema:
        raise InvalidEvidence(
            f"record: schema {found!r} where {cls.schema!r} is needed; use the version that wrote it"
        )
    body = {k: v for k, v in data.items() if k != "schema"}
    unknown = set(body) - {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown:
        raise InvalidEvidence(
            f"{cls.schema}: unknown fields {sorted(unknown)}; use the version that wrote it"
        )
    try:
        record: R = _adapter(cast("Any", cls)).validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidEvidence(f"{cls.schema}: {where}: {first['msg']}; the record is damaged") from error
    return record


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
        return dataclasses.replace(self, system=None)


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
        return dataclasses.asdict(self)


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


@dataclass(frozen=True)
class Artifact:
    """A stored artifact: what kind it is, its digest, and its files' total size."""

    kind: str
    digest: str
    size_bytes: int
    files: tuple[str, ...] = field(default=())
