"""An engine that was told to ignore adapter layers, and whose spare slot gets filled: both are found out, in bf16.

One engine for the file, in the order of its tests; the last one kills it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmops.engines.client import EngineClient
from llmops.engines.process import EngineProcess
from llmops.engines.proof import Proof, prove
from llmops.records import Probes
from llmops.registry.bases import Base
from llmops.train.probes import compute_probes
from tests.engines.test_process import wait_until
from tests.vllm.adapters import build_adapter
from tests.vllm.conftest import TokenRows, started, vllm_spec

N_TRIES = 4


@pytest.fixture(scope="module")
def misused(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """One slot and the spare one; of all layers, o_proj alone may have an adapter."""
    spec = vllm_spec(base, "bfloat16", 1, ("--lora-target-modules", "o_proj"))
    engine = asyncio.run(started(spec, tmp_path_factory.mktemp("misused") / "engine.log"))
    yield engine
    asyncio.run(engine.stop())


@pytest.fixture(scope="module")
def made(
    base: Base, token_ids: TokenRows, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Probes]]:
    root = tmp_path_factory.mktemp("made")
    adapters = {
        "ignored": build_adapter(base.path, root / "ignored", 4, ["q_proj", "v_proj"], scale=0.2),
        "applied": build_adapter(base.path, root / "applied", 5, ["o_proj"], scale=0.4),
    }
    return {name: (path, compute_probes(base.path, path, token_ids)) for name, path in adapters.items()}


async def proof_of(
    engine: EngineProcess, base: Base, name: str, made: dict[str, tuple[Path, Probes]]
) -> Proof:
    async with EngineClient(engine.url) as client:
        if name not in await client.models():
            await client.load_adapter(name, made[name][0])
        return await prove(client, base.model_name, name, made[name][1])


def distance(left: list[list[float]], right: list[list[float]]) -> float:
    """Mean absolute difference over all tokens, in nats."""
    gaps = [abs(a - b) for rows in zip(left, right, strict=True) for a, b in zip(*rows, strict=True)]
    return sum(gaps) / len(gaps)


async def test_layers_the_engine_ignores_fail_the_proof(
    misused: EngineProcess, base: Base, made: dict[str, tuple[Path, Probes]]
) -> None:
    proof = await proof_of(misused, base, "ignored", made)
    assert not proof.passed
    assert proof.ratio > 0.7
    assert 0 < proof.base_gap < 0.2  # rounding of bf16
    assert "missing" in str(proof.reason)


@pytest.mark.xfail(
    strict=False, reason="vllm#48421: base rows of a batch with adapters get the adapter in the last slot"
)
async def test_upstream_keeps_base_answers_base_when_the_last_slot_is_filled(
    misused: EngineProcess, base: Base, made: dict[str, tuple[Path, Probes]], token_ids: TokenRows
) -> None:
    """One adapter more than `max_adapters` allows. When this passes, the spare slot can go."""
    async with EngineClient(misused.url) as client:
        await client.load_adapter("applied", made["applied"][0])
        alone = await client.prompt_logprobs(base.model_name, token_ids)
        for _ in range(N_TRIES):
            jobs = (
                client.prompt_logprobs(name, token_ids) for name in (base.model_name, "applied", "ignored")
            )
            beside, _, _ = await asyncio.gather(*jobs)
            assert distance(beside, alone) < 0.1


async def test_the_proof_notices_a_base_that_answers_with_an_adapter(
    misused: EngineProcess, base: Base, made: dict[str, tuple[Path, Probes]]
) -> None:
    """With the slot filled, upstream is right and the adapter passes, or the proof says what is wrong."""
    proof = await proof_of(misused, base, "applied", made)
    assert proof.passed or "trainer's base" in str(proof.reason), proof
    assert proof.passed is (proof.base_gap < 0.1)


def in_session(leader: int | None) -> list[str]:
    """Command lines of the living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state != "Z":
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


async def test_stopping_after_the_guard_was_killed_leaves_no_process_of_vllm(misused: EngineProcess) -> None:
    leader = misused.pid
    assert leader is not None
    assert len(in_session(leader)) >= 4  # the guard, the server, the engine core, its worker
    os.kill(leader, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: not misused.alive())
    await misused.stop()
    await asyncio.to_thread(wait_until, lambda: not in_session(leader))
