"""What is known about a model: prompt contract, probes, lineage, adapter, and the engine it runs on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

from llmops.schema import JsonDict, Record, short


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
class RewardProbes(Record):
    """Rewards of fixed texts as the trainer saw them: what a reward adapter must give again, wherever it is loaded.

    `rewards[i]` is that of `token_ids[i]`, read at its last token, in fp32.
    """

    schema: ClassVar[str] = "llmops.reward_probes/1"
    token_ids: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class Lineage(Record):
    """Where an adapter comes from: everything needed to make it again or to say why it cannot be."""

    schema: ClassVar[str] = "llmops.lineage/2"
    origin: Literal["trained", "imported"]
    recipe: JsonDict  # resolved; {} for an imported adapter
    recipe_digest: str
    dataset: str | None  # DatasetSnapshot digest; None when it was trained on preferences
    preferences: str | None  # PreferenceSnapshot digest
    continues: str | None  # digest of the adapter whose weights training began with
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

    `digest` names the adapter everywhere; the record itself is found through the ledger. One of kind `reward` gives a
    number for a text instead of writing one: its probes are `RewardProbes`, and it is never served.
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
    kind: Literal["generating", "reward"] = "generating"

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


@dataclass(frozen=True)
class EngineSettings(Record):
    """What a serving profile says of base and engine: what `llmops engine start` exchanges under a running gateway."""

    schema: ClassVar[str] = "llmops.engine_settings/1"
    base_model: str
    engine: JsonDict  # as in the profile, defaults written out
    max_model_tokens: int
    slots: int
    max_lora_rank: int


@dataclass(frozen=True)
class StartedEngine(Record):
    """A second engine as it came up: what it was told, and the signature that its answers carry."""

    schema: ClassVar[str] = "llmops.started_engine/1"
    settings: str  # EngineSettings digest
    signature: EngineSignature
