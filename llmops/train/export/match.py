"""Whether written files answer as the adapter does: its stored probes, and greedy answers token by token.

Log-probabilities are compared with those the trainer stored; greedy answers are the adapter's own, fed to the written
model, which must prefer the same tokens. All arithmetic is fp32: what differs is what writing has rounded away.

Where the tolerances come from: SmolLM2-135M-Instruct, LoRA r=16 on all linear layers after 5 steps (effect 0.50 nats a
token), 8 probes, read back by transformers 5.19 on a CPU, November 2026; differences in nats a token:

    written as      mean       largest   greedy tokens equal
    fp32            0.0000045  0.000036  62 of 62
    fp16            0.0016     0.0099    62 of 62
    bf16            0.048      0.38      62 of 62
    q8_0 (GGUF)     0.050      0.50      61 of 62
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmops.errors import InvalidEvidence
from llmops.records import Probes
from llmops.schema import JsonDict
from llmops.train.probes import effect_nats, load_adapted, token_logprobs

N_ANSWERS = 4
N_ANSWER_TOKENS = 16
LEAST_KEPT_FRAC = 0.75
"""Part of the adapter's effect that must be there. Rounding moves answers in no particular direction, so that it hardly
changes this figure, which is 1 for the adapter and 0 for its base."""

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tolerance:
    """What may differ: mean nats a probed token, and by how much another token may be preferred in a greedy answer."""

    mean_nats: float
    tie_nats: float


TOLERANCES = {
    "fp32": Tolerance(0.001, 0.01),
    "fp16": Tolerance(0.02, 0.1),
    "f32": Tolerance(0.001, 0.01),
    "f16": Tolerance(0.02, 0.1),
    "bf16": Tolerance(0.15, 0.75),
    "q8_0": Tolerance(0.15, 0.75),
    "fp8": Tolerance(0.5, 2.0),
    "w8a8": Tolerance(0.5, 2.0),
    "w4a16": Tolerance(1.0, 4.0),
}
"""By the type the weights are written in. An export may be held to a stricter mean by the command that makes it."""


@dataclass(frozen=True)
class Answer:
    """The first half of a probe, and the tokens the adapter itself goes on with, each its most likely."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """What a written model says: log-probabilities of the probes, and per answer token how far it stands below the
    model's own choice (0: it is that choice), both in nats.
    """

    logprobs: Rows
    shortfalls: Rows


@dataclass(frozen=True)
class Match:
    """How far the written model is from the adapter, in nats, and the tolerance that was allowed.

    `kept_frac` is how much of the way from base to adapter it goes, by least squares over the probed tokens.
    """

    mean_nats: float
    max_nats: float
    effect_nats: float
    kept_frac: float
    n_answer_tokens: int
    n_same_tokens: int
    max_shortfall_nats: float
    tolerance: Tolerance

    def to_dict(self) -> JsonDict:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.mean_nats:.2g} nats a token from the adapter on its probes (largest {self.max_nats:.2g}, allowed "
            f"{self.tolerance.mean_nats:g} on average), {self.kept_frac:.0%} of its effect of {self.effect_nats:.2g}, "
            f"{self.n_same_tokens} of {self.n_answer_tokens} greedy tokens equal"
        )


def adapter_answers(base_path: Path, adapter: Path, probes: Probes) -> tuple[Answer, ...]:
    """What base and adapter, read from their files in fp32, greedily answer to the first half of some probes."""
    import torch

    model = load_adapted(base_path, adapter, "cpu")
    prompts = [row[: max(1, len(row) // 2)] for row in probes.token_ids[:N_ANSWERS]]
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=N_ANSWER_TOKENS,
                pad_token_id=0,  # one row alone is never padded
            )
        answers.append(Answer(tuple(prompt), tuple(int(t) for t in made[0, len(prompt) :])))
    return tuple(answers)


def measure(model: Any, probes: Probes, answers: Sequence[Answer]) -> Measured:
    """What a loaded model (fp32, on the CPU) says to the probes and to the adapter's answers."""
    return Measured(
        tuple(token_logprobs(model, row, "cpu") for row in probes.token_ids),
        tuple(_shortfalls(model, answer) for answer in answers),
    )


def _shortfalls(model: Any, answer: Answer) -> tuple[float, ...]:
    import torch

    ids = torch.tensor([answer.prompt + answer.tokens])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(answer.prompt) - 1 : -1].float()
    chosen = logits.gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
    return tuple(float(value) for value in logits.max(-1).values - chosen)


def compare(probes: Probes, measured: Measured, tolerance: Tolerance) -> Match:
    """The differences between a written model and the adapter.

    >>> probes = Probes(((5, 6, 7),), ((-3.0, -3.0),), ((-1.0, -1.0),))
    >>> compare(probes, Measured(((-1.0, -1.5),), ((0.0, 0.5),)), TOLERANCES["bf16"]).mean_nats
    0.25
    """
    pairs = zip(measured.logprobs, probes.adapter_logprobs, strict=True)
    gaps = [abs(a - b) for found, wanted in pairs for a, b in zip(found, wanted, strict=True)]
    shortfalls = [value for row in measured.shortfalls for value in row]
    return Match(
        mean_nats=math.fsum(gaps) / len(gaps),
        max_nats=max(gaps),
        effect_nats=effect_nats(probes),
        kept_frac=_kept(probes, measured.logprobs),
        n_answer_tokens=len(shortfalls),
        n_same_tokens=sum(value == 0 for value in shortfalls),
        max_shortfall_nats=max(shortfalls, default=0.0),
        tolerance=tolerance,
    )


def _kept(probes: Probes, found: Rows) -> float:
    """Slope of (written - base) over (adapter - base), through the origin."""
    across = along = 0.0
    for rows in zip(found, probes.base_logprobs, probes.adapter_logprobs, strict=True):
        for written, base, adapter in zip(*rows, strict=True):
            along += (written - base) * (adapter - base)
            across += (adapter - base) ** 2
    return along / across if across else math.nan


def require_match(match: Match, where: str) -> None:
    """Refuse files whose answers are not the adapter's.

    Raises:
        InvalidEvidence: which figure is over its tolerance; `where` names the files.
    """
    limits = match.tolerance
    if not match.mean_nats <= limits.mean_nats:  # a figure that is not a number is over it, too
        problem = (
            f"differ by {match.mean_nats:.3g} nats a token on its probes, {limits.mean_nats:g} is allowed"
        )
    elif not match.kept_frac >= LEAST_KEPT_FRAC:
        problem = (
            f"keep {match.kept_frac:.0%} of what it changes on its probes, {LEAST_KEPT_FRAC:.0%} is the least"
        )
    elif not match.max_shortfall_nats <= limits.tie_nats:
        problem = (
            f"prefer another token of a greedy answer by {match.max_shortfall_nats:.3g} nats, {limits.tie_nats:g} is "
            "allowed"
        )
    else:
        return
    raise InvalidEvidence(
        f"{where}: its answers are not the adapter's: they {problem}; nothing is kept, write a wider type"
    )


def tolerance_for(dtype: str, mean_nats: float | None) -> Tolerance:
    """The tolerance of a type of weights; with another mean where one is given, and the rest in proportion."""
    usual = TOLERANCES[dtype]
    if mean_nats is None:
        return usual
    return Tolerance(mean_nats, usual.tie_nats * mean_nats / usual.mean_nats)
