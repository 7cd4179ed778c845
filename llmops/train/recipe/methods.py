"""How a recipe trains: one class a method, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from llmops.engines.decoding import Decoding
from llmops.train.recipe.settings import Settings

LearnsFrom = Literal["conversations", "pairs", "judged"]
"""What a method's rows are: answers to learn, answers of which one is preferred, or answers judged one by one."""


class Sft(Settings):
    """Supervised fine-tuning: the loss of the assistant's tokens."""

    learns_from: ClassVar[tuple[LearnsFrom, ...]] = ("conversations",)

    kind: Literal["sft"]
    """The training method."""


class Dpo(Settings):
    """Direct preference optimization (Rafailov 2023, arXiv:2305.18290): chosen answers gain on rejected ones.

    The model is held near the one that training starts from, its reference: the adapter named by `continue_from`, the
    base without one. A pair's margin is log p(chosen) - log p(rejected), less the same under the reference.
    """

    learns_from: ClassVar[tuple[LearnsFrom, ...]] = ("pairs",)

    kind: Literal["dpo"]
    """The training method."""
    beta: float = Field(0.1, gt=0)
    """How dear it is to leave the reference; larger stays nearer to it. For ipo this is its tau."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: -log sigmoid(beta * margin). ipo: squared distance of the margin a token from 1 / (2 * beta), which does
    not push pairs that are settled already (Azar 2023, arXiv:2310.12036)."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen answers' own loss (nats a label), added so that they do not grow unlikely together with the
    rejected ones (RPO; Pang 2024, arXiv:2404.19733)."""


class Kto(Settings):
    """Kahneman-Tversky optimization (Ethayarajh 2024, arXiv:2402.01306): answers that were judged one by one.

    Every answer's log-ratio to the reference (as for dpo) is compared with a common point, the batch's mean log-ratio
    of answers that belong to other prompts, never under 0. A pair counts as two answers: chosen is good, rejected is
    not. The point is measured within one pass, so `batch.per_device` must be 2 at least, and is better at 8 or more.
    """

    learns_from: ClassVar[tuple[LearnsFrom, ...]] = ("judged", "pairs")

    kind: Literal["kto"]
    """The training method."""
    beta: float = Field(0.1, gt=0)
    """How dear it is to leave the reference; larger stays nearer to it."""
    good_weight: float = Field(1.0, gt=0)
    """Weight of good answers (the paper's lambda D). With `bad_weight` it makes up for unequal numbers: the paper keeps
    good_weight * n_good between 1 and 4/3 of bad_weight * n_bad (its equation 8)."""
    bad_weight: float = Field(1.0, gt=0)
    """Weight of bad answers (the paper's lambda U)."""


class Orpo(Settings):
    """Odds ratio preference optimization (Hong 2024, arXiv:2403.07691): chosen answers are learnt as by sft, and their
    odds gain on those of rejected ones. There is no reference, so it can begin with the base.

    The loss is that of the chosen answers (nats a label) plus beta times -log sigmoid of the log odds ratio, where an
    answer's probability is the geometric mean of its tokens'. Prompts are not learnt (TRL 1.16 learns them too).
    """

    learns_from: ClassVar[tuple[LearnsFrom, ...]] = ("pairs",)

    kind: Literal["orpo"]
    """The training method."""
    beta: float = Field(0.1, gt=0)
    """Weight of the odds ratio (the paper's lambda)."""


class Reward(Settings):
    """A reward model (Bradley-Terry, as in Ouyang 2022, arXiv:2203.02155): a number for an answer, higher for the
    better one of a pair.

    The adapter gets a head of one number, read at the answer's end token. It writes no text, so it is never served or
    released; method grpo uses it by name.
    """

    learns_from: ClassVar[tuple[LearnsFrom, ...]] = ("pairs",)

    kind: Literal["reward"]
    """The training method."""
    center_weight: float = Field(0.01, ge=0)
    """Weight of the squared sum of a pair's rewards, which keeps rewards around 0 (Eisenstein 2023, arXiv:2312.09244);
    0 leaves their level open."""


class ModelTeacher(Settings):
    """A model whose distributions over the next token are learnt. It must have the student's tokenizer."""

    kind: Literal["model"]
    """A model on this machine, read beside the student."""
    base_model: str | None = None
    """The teacher's base, as for `base_model` of a recipe; unset: the adapter's own base."""
    adapter: str | None = None
    """An adapter on it: any adapter reference, or a public name (its champion)."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """What is made small at every position of the answers. forward_kl: KL(teacher || student), all that the teacher may
    say (Hinton 2015, arXiv:1503.02531). reverse_kl: KL(student || teacher), what it says for certain (Gu 2023,
    arXiv:2306.08543). jsd: between both (generalised Jensen-Shannon divergence; Agarwal 2023, arXiv:2306.13649)."""
    jsd_beta: float = Field(0.5, gt=0, lt=1)
    """For jsd: share of the teacher in the mixture that both are compared with."""
    temperature: float = Field(1.0, gt=0)
    """Both distributions are flattened by it before they are compared; 1 compares what they say."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the rows' own answers' loss (nats a label), added to the divergence."""

    @model_validator(mode="after")
    def _named(self) -> ModelTeacher:
        if self.base_model is None and self.adapter is None:
            raise ValueError("names no teacher; give base_model, adapter, or both")
        return self


class EndpointTeacher(Settings):
    """A model behind any OpenAI endpoint, whose answers to the rows' prompts are learnt as by sft.

    Answers are kept as they come, so that a run that was broken off asks for the missing ones alone. They are frozen as
    a dataset snapshot that names endpoint, model and decoding. Rows whose answer is empty or was cut are dropped.
    """

    kind: Literal["endpoint"]
    """A model that is asked for its answers over HTTP."""
    url: str = Field(pattern=r"^https?://[^@\s]+$")
    """The address that `/chat/completions` is put behind, as http://127.0.0.1:8000/v1."""
    model: str
    """The model's name there."""
    decoding: Decoding
    """How its answers are generated."""
    concurrency: int = Field(8, ge=1)
    """Questions under way at once."""
    answer_s: float = Field(600.0, gt=0)
    """Seconds after which an answer is given up."""
    retry_s: float = Field(60.0, ge=0)
    """Seconds for which a busy or missing endpoint is asked again."""
    api_key_env: str | None = None
    """Environment variable that holds the key; it is sent, and never written down."""


class Distill(Settings):
    """Distillation: the student learns what a teacher says to the rows' prompts."""

    learns_from: ClassVar[tuple[LearnsFrom, ...]] = ("conversations",)

    kind: Literal["distill"]
    """The training method."""
    teacher: Annotated[ModelTeacher | EndpointTeacher, Field(discriminator="kind")]
    """Who is learnt from: distributions where the tokenizers are one, answers from anywhere else."""


class PythonReward(Settings):
    """A reward that a Python function gives."""

    kind: Literal["python"]
    """A function of yours."""
    function: str = Field(pattern=r"^.+\.py::[A-Za-z_]\w*$")
    """`file.py::name`, the file relative to the recipe. It is called as `name(prompt, completion, reference)` with the
    turns that were asked (a list of {role, content}), the answer's text and the row's own answer; returns a number."""
    weight: float = 1.0
    """What the reward is multiplied by before all are added up."""
    sha256: str | None = None
    """Of the file's bytes. A run writes it down; where it is given, another file is refused."""


class AdapterReward(Settings):
    """A reward that a reward model gives, as method reward trains it."""

    kind: Literal["adapter"]
    """A reward model of this workspace."""
    adapter: str
    """Its adapter: any adapter reference. Its base must have this recipe's tokenizer and chat template."""
    weight: float = 1.0
    """What the reward is multiplied by before all are added up."""


class Grpo(Settings):
    """Group relative policy optimization (Shao 2024, arXiv:2402.03300): answers are sampled and rewarded, and gain as
    far as they are better than the other answers to their prompt.

    A step samples `batch.per_device * batch.accumulation * launch.processes` answers, `n_answers` to each of its
    prompts, and takes one update from them, so that no answer is older than the weights. The rows' prompts are asked;
    their answers are what reward functions may compare with.
    """

    learns_from: ClassVar[tuple[LearnsFrom, ...]] = ("conversations",)

    kind: Literal["grpo"]
    """The training method."""
    rewards: tuple[Annotated[PythonReward | AdapterReward, Field(discriminator="kind")], ...] = Field(
        min_length=1
    )
    """What makes an answer good; several are added up by their weights."""
    n_answers: int = Field(8, ge=2)
    """Answers sampled to one prompt (the paper's G)."""
    max_answer_tokens: int = Field(128, ge=1)
    """Tokens after which an answer is cut; with the prompt's they must fit into max_tokens."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling, and of the probabilities that are learnt from."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of probability that is sampled from."""
    beta: float = Field(0.04, ge=0)
    """How dear it is to leave the reference, the model that training starts from (0.04 in the paper); 0 reads none."""
    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """How tokens are averaged. dapo: over all answers of a step (Yu 2025, arXiv:2503.14476). grpo: within each answer
    first, as in the paper, which makes long bad answers cheap. dr_grpo: over max_answer_tokens, without any bias by
    length (Liu 2025, arXiv:2503.20783)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What an advantage is divided by: the deviation of rewards among the answers to its prompt (the paper's), that of
    the whole step, or nothing (Liu 2025: prompts that are settled already weigh less so)."""


Method = Sft | Dpo | Kto | Orpo | Reward | Distill | Grpo
