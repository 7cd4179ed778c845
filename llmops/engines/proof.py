"""The adapter-applied proof: an engine must compute with the adapter it says it has loaded.

An engine can answer from the base and never say so: renamed keys, layers it was told to leave alone, a wrong
slot (vllm#34186, #34591, #48421, #55193). Training stores log-probabilities of fixed texts under base and
adapter (`Probes`); here the engine has to reproduce both. All figures are mean absolute differences in nats a
token, over all probe tokens:

    effect      |trainer(adapter) - trainer(base)|      what the adapter does
    base_gap    |engine(base) - trainer(base)|          what its arithmetic does by itself
    engine_gap  |engine(adapter) - trainer(adapter)|
    ratio       (engine_gap - base_gap) / effect        the part of it that is missing, rounding taken off

Passes if `ratio` < MISSING_FRAC, `base_gap` < NOISE_FRAC * effect (else nothing could be told apart), and
`base_gap` is under the rounding one expects of the engine's dtype (else base requests do not get the base).

Where the constants come from: vLLM 0.32.0 on CPU, SmolLM2-135M-Instruct, trainer in fp32 (transformers 5.19,
peft 0.21), LoRA r=16 on all linear layers after 2 to 20 steps of 4 rows at lr 5e-4, 1090 probe tokens,
November 2026:

    adapter           effect   fp32: ratio   bf16: base_gap  engine_gap  ratio
    2 steps            0.246       0.00003          0.0503      0.0749   0.100
    5 steps            0.463       0.00002          0.0503      0.0671   0.036
    10 steps           0.610       0.00001          0.0503      0.0585   0.014
    20 steps           0.776       0.00001          0.0503      0.0502   0.000
    not applied        (any)       1.0              0.0503         -     0.84 to 0.95
    without MLP        0.463       0.52 (5 steps), 0.42 (20 steps)
    without down_proj  0.463       0.23 (5 steps), 0.21 (20 steps)

A quarter, without taking rounding off, would have passed an adapter whose `down_proj` is ignored and refused
a genuine one of 2 steps in bf16 (0.0749 / 0.246 = 0.30). fp32 base_gap was 0.00001.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from llmops.engines.client import EngineClient
from llmops.errors import BadRequest, EngineFailed
from llmops.records import EngineSignature, Probes

MISSING_FRAC = 0.125
NOISE_FRAC = 0.5
ROUNDING_NATS = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.2}
QUANTIZED_ROUNDING_NATS = 1.0

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Proof:
    """What was found, in nats a token (NaN: not measured); `reason` is None if it passed."""

    passed: bool
    engine_gap: float
    adapter_effect: float
    ratio: float
    base_gap: float
    reason: str | None


def rounding_nats(signature: EngineSignature) -> float:
    """How far an engine may be from the trainer's fp32 on the base itself, by its dtype and quantisation."""
    if signature.quantization is not None:
        return QUANTIZED_ROUNDING_NATS
    return ROUNDING_NATS.get(signature.dtype, ROUNDING_NATS["bfloat16"])


async def prove(
    client: EngineClient,
    base_name: str,
    adapter_name: str,
    probes: Probes,
    limit_nats: float = ROUNDING_NATS["bfloat16"],
) -> Proof:
    """Ask the engine for the probes under base and adapter, and judge.

    Both are asked at once, so that they share batches: an engine that mixes up rows of one batch is found out
    here.

    Args:
        client: the engine, with the adapter loaded.
        base_name: served name of the base.
        adapter_name: served name of the adapter.
        probes: what the trainer computed, in fp32.
        limit_nats: see `rounding_nats`.

    Returns:
        The proof. Not passed, with the reason, also when the probes are unusable, a name is not served, or an
        answer is not
        finite: only an engine that answers right passes.

    Raises:
        EngineFailed: nothing answers at the engine's address; says nothing about the adapter.
    """
    if (problem := unusable(probes)) is not None:
        return _failed(problem)
    asked = (client.prompt_logprobs(name, probes.token_ids) for name in (base_name, adapter_name))
    rows: list[Rows] = []
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(answer, EngineFailed | BadRequest) and await client.healthy():
            return _failed(str(answer))
        if isinstance(answer, BaseException):
            raise answer
        rows.append(tuple(tuple(row) for row in answer))
    base, adapter = rows
    return judge(probes, base, adapter, limit_nats)


def judge(probes: Probes, base: Rows, adapter: Rows, limit_nats: float) -> Proof:
    """The proof from an engine's answers: `base[i]` and `adapter[i]` hold T_i - 1 log-probabilities of probe
    i.

    >>> probes = Probes(((5, 6, 7),), ((-2.0, -2.0),), ((-1.0, -1.0),))
    >>> judge(probes, ((-2.0, -2.0),), ((-1.0, -1.0),), 0.2).passed
    True
    >>> judge(probes, ((-2.0, -2.0),), ((-2.0, -2.0),), 0.2).ratio
    1.0
    """
    if (problem := unusable(probes)) is not None:
        return _failed(problem)
    shape = [len(row) for row in probes.base_logprobs]
    for name, rows in (("base", base), ("adapter", adapter)):
        if [len(row) for row in rows] != shape or not _finite(rows):
            return _failed(
                f"the engine's log-probabilities under the {name} are not those of the probes, or not finite"
            )
    effect = _gap(probes.adapter_logprobs, probes.base_logprobs)
    base_gap = _gap(base, probes.base_logprobs)
    engine_gap = _gap(adapter, probes.adapter_logprobs)
    ratio = max(0.0, engine_gap - base_gap) / effect
    reason = _reason(effect, base_gap, ratio, limit_nats)
    return Proof(reason is None, engine_gap, effect, ratio, base_gap, reason)


def unusable(probes: Probes) -> str | None:
    """Why nothing can be proven with these probes; None when it can."""
    shape = [len(ids) - 1 for ids in probes.token_ids]
    rows = (probes.base_logprobs, probes.adapter_logprobs)
    if not shape or min(shape) < 1:
        return "the probes are empty"
    if any([len(row) for row in part] != shape for part in rows):
        return "the probes' log-probabilities do not match their tokens"
    if not all(_finite(part) for part in rows):
        return "the probes hold numbers that are not finite"
    if _gap(*rows) == 0.0:
        return "the trainer saw no effect of the adapter on the probes"
    return None


def _reason(effect: float, base_gap: float, ratio: float, limit_nats: float) -> str | None:
    if base_gap >= limit_nats:
        return (
            f"requests to the base do not get the trainer's base: {base_gap:.3g} nats a token apart, "
            f"where rounding explains up to {limit_nats:g}; another base, or an adapter served under its name"
        )
    if base_gap >= NOISE_FRAC * effect:
        return (
            f"requests to the base differ from the trainer's base by {base_gap:.3g} nats a token, the "
            f"adapter's whole effect is {effect:.3g}: the adapter answers for the base, or its effect drowns "
            "in rounding (then serve in float32)"
        )
    if ratio >= MISSING_FRAC:
        return (
            f"{min(ratio, 1.0):.0%} of the adapter's effect is missing in the engine's answers (allowed: "
            f"{MISSING_FRAC:.1%} of {effect:.3g} nats a token): it is not applied, or not all of it"
        )
    return None


def _failed(reason: str) -> Proof:
    return Proof(False, math.nan, math.nan, math.nan, math.nan, reason)


def _gap(left: Rows, right: Rows) -> float:
    """Mean absolute difference over all tokens, in nats."""
    gaps = [abs(a - b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)]
    return math.fsum(gaps) / len(gaps)


def _finite(rows: Rows) -> bool:
    return all(math.isfinite(x) for row in rows for x in row)
