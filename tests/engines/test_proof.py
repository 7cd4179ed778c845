"""The adapter-applied proof: its arithmetic in closed form, and its verdicts on the real embedded engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmops.engines.client import EngineClient
from llmops.engines.proof import MISSING_FRAC, NOISE_FRAC, ROUNDING_NATS, judge, prove, rounding_nats
from llmops.errors import EngineFailed
from llmops.records import EngineSignature, Probes
from tests.engines.embedded_child import BASE_NAME, Running, running_here
from tests.engines.scoring import probes_of
from tests.tiny import build_tiny_adapter

TEXTS = tuple(
    tuple(text.encode()) for text in ("def add(a, b):", "Return the sum of two numbers.", "class Node:")
)
PROBES = Probes(
    ((1, 2, 3), (4, 5)), ((-2.0, -4.0), (-6.0,)), ((-1.0, -5.0), (-5.5,))
)  # effect (1 + 1 + 0.5) / 3
EFFECT = 2.5 / 3


def shifted(rows: tuple[tuple[float, ...], ...], by: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(x + by for x in row) for row in rows)


def part(frac: float) -> tuple[tuple[float, ...], ...]:
    """What an engine answers that applies `frac` of the adapter's effect."""
    pairs = zip(PROBES.base_logprobs, PROBES.adapter_logprobs, strict=True)
    return tuple(tuple(b + frac * (a - b) for b, a in zip(bs, As, strict=True)) for bs, As in pairs)


def test_the_figures_are_mean_absolute_differences_over_tokens() -> None:
    proof = judge(PROBES, shifted(PROBES.base_logprobs, -0.01), shifted(PROBES.adapter_logprobs, 0.03), 0.2)
    assert proof.passed
    assert proof.reason is None
    assert proof.adapter_effect == pytest.approx(EFFECT)
    assert proof.base_gap == pytest.approx(0.01)
    assert proof.engine_gap == pytest.approx(0.03)
    assert proof.ratio == pytest.approx(0.02 / EFFECT)


@pytest.mark.parametrize(
    ("applied", "passes"), [(1.0, True), (0.9, True), (0.85, False), (0.5, False), (0.0, False)]
)
def test_the_ratio_is_the_missing_part_of_the_effect(applied: float, passes: bool) -> None:
    proof = judge(PROBES, PROBES.base_logprobs, part(applied), 0.2)
    assert proof.ratio == pytest.approx(1 - applied)
    assert proof.passed is passes is (1 - applied < MISSING_FRAC)
    if not passes:
        assert "missing" in str(proof.reason)


def test_an_adapter_that_answers_for_the_base_fails() -> None:
    for base_answers in (PROBES.adapter_logprobs, shifted(PROBES.base_logprobs, 0.3)):
        proof = judge(PROBES, base_answers, PROBES.adapter_logprobs, 0.2)
        assert not proof.passed
        assert "trainer's base" in str(proof.reason)


def test_an_effect_that_drowns_in_rounding_cannot_be_proven() -> None:
    rounding = NOISE_FRAC * EFFECT
    loud = shifted(PROBES.base_logprobs, rounding * 1.01)
    quiet = shifted(PROBES.base_logprobs, rounding * 0.99)
    assert "drowns" in str(judge(PROBES, loud, PROBES.adapter_logprobs, 1.0).reason)
    assert judge(PROBES, quiet, PROBES.adapter_logprobs, 1.0).passed


NAN = float("nan")


@pytest.mark.parametrize(
    "probes",
    [
        Probes((), (), ()),
        Probes(((1,),), ((),), ((),)),
        replace(PROBES, base_logprobs=((-2.0, -4.0),)),
        replace(PROBES, adapter_logprobs=((-1.0,), (-5.5,))),
        replace(PROBES, base_logprobs=((-2.0, NAN), (-6.0,))),
        replace(PROBES, adapter_logprobs=((-2.0, -math.inf), (-6.0,))),
        replace(PROBES, adapter_logprobs=PROBES.base_logprobs),
    ],
)
def test_unusable_probes_prove_nothing(probes: Probes) -> None:
    proof = judge(probes, probes.base_logprobs, probes.adapter_logprobs, 0.2)
    assert not proof.passed
    assert proof.reason
    assert math.isnan(proof.ratio)


@pytest.mark.parametrize("rows", [((NAN, -5.0), (-5.5,)), ((-1.0,), (-5.5,)), ((-1.0, -5.0),), ()])
def test_answers_that_are_not_those_of_the_probes_fail(rows: tuple[tuple[float, ...], ...]) -> None:
    assert not judge(PROBES, PROBES.base_logprobs, rows, 0.2).passed
    assert not judge(PROBES, rows, PROBES.adapter_logprobs, 0.2).passed


def test_the_rounding_allowed_follows_dtype_and_quantisation() -> None:
    plain = EngineSignature("vllm", "0.32.0", "float32", None, "cpu", "0" * 64, 2048)
    assert rounding_nats(plain) == ROUNDING_NATS["float32"] < rounding_nats(replace(plain, dtype="bfloat16"))
    assert rounding_nats(replace(plain, quantization="fp8")) > rounding_nats(replace(plain, dtype="bfloat16"))


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Running]:
    with running_here(tiny_model, ["--max-loras", "4"]) as engine:
        yield engine


async def test_a_genuine_adapter_passes_and_an_idle_or_a_foreign_one_fails(
    engine: Running, tiny_model: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    probes = probes_of(tiny_model, tiny_adapter, TEXTS)
    idle = build_tiny_adapter(tiny_model, tmp_path / "idle", seed=1, scale=0.0)
    other = build_tiny_adapter(tiny_model, tmp_path / "other", seed=2)
    async with EngineClient(engine.url) as client:
        for name, path in (("genuine", tiny_adapter), ("idle", idle), ("other", other)):
            await client.load_adapter(name, path)
        limit = ROUNDING_NATS["float32"]
        genuine = await prove(client, BASE_NAME, "genuine", probes, limit)
        assert genuine.passed, genuine
        assert genuine.ratio < 0.001
        nothing = await prove(client, BASE_NAME, "idle", probes, limit)
        assert not nothing.passed
        assert nothing.ratio == pytest.approx(1.0, abs=0.001)
        assert not (await prove(client, BASE_NAME, "other", probes, limit)).passed
        swapped = await prove(client, "genuine", "genuine", probes, limit)
        assert not swapped.passed
        assert "trainer's base" in str(swapped.reason)


async def test_a_name_that_is_not_served_fails_and_a_dead_engine_is_no_verdict(
    engine: Running, tiny_model: Path, tiny_adapter: Path
) -> None:
    probes = probes_of(tiny_model, tiny_adapter, TEXTS)
    async with EngineClient(engine.url) as client:
        missing = await prove(client, BASE_NAME, "nobody", probes)
        assert not missing.passed
        assert "nobody" in str(missing.reason)
    async with EngineClient("http://127.0.0.1:9") as client:
        with pytest.raises(EngineFailed, match="was not answered"):
            await prove(client, BASE_NAME, "genuine", probes)
