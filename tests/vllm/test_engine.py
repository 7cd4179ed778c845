"""What the gateway stands on, of real vLLM: adapters at run time, exact log-probabilities, the proof, a clean base."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llmops.engines.client import EngineClient
from llmops.engines.process import EngineProcess
from llmops.engines.proof import ROUNDING_NATS, prove
from llmops.engines.spec import signature
from llmops.errors import BadRequest, EngineFailed
from llmops.records import Probes
from llmops.registry.bases import Base
from tests.engines.scoring import Rows
from tests.vllm.conftest import ROOT, TokenRows, vllm_spec

FP32 = ROUNDING_NATS["float32"]
LOADED = ["docs", "titles", "idle", "renamed"]
N_ROUNDS = 4


async def complete(
    engine: EngineProcess, model: str, prompt: TokenRows | tuple[int, ...], n_tokens: int
) -> str:
    body = {"model": model, "prompt": list(prompt), "max_tokens": n_tokens, "temperature": 0}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{engine.url}/v1/completions", json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()
        text: str = (await answer.json())["choices"][0]["text"]
        return text


def furthest(left: Any, right: Any) -> float:
    return max(
        abs(a - b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)
    )


async def test_adapters_load_at_run_time_and_the_version_is_told(
    client: EngineClient, base: Base, folders: dict[str, Path]
) -> None:
    assert await client.models() == [base.model_name, *folders]
    version = await client.version()
    assert version.startswith("0.32.")
    assert signature(vllm_spec(base, "float32", 1), version).base == base.digest


@pytest.mark.parametrize("name", ["base", "docs", "titles"])
async def test_prompt_logprobs_equal_the_trainers_in_fp32(
    client: EngineClient, base: Base, truth: dict[str, Rows], token_ids: TokenRows, name: str
) -> None:
    rows = await client.prompt_logprobs(base.model_name if name == "base" else name, token_ids)
    assert furthest(rows, truth[name]) < 1e-3


@pytest.mark.parametrize(
    ("name", "passes"), [("docs", True), ("titles", True), ("idle", False), ("renamed", False)]
)
async def test_the_proof_passes_genuine_adapters_and_fails_those_that_do_nothing(
    client: EngineClient, base: Base, probes: dict[str, Probes], name: str, passes: bool
) -> None:
    """`idle` and `renamed` are held against what `docs` should do, as if a training run's files had come to this."""
    proof = await prove(client, base.model_name, name, probes[name if passes else "docs"], FP32)
    assert proof.passed is passes, proof
    assert proof.base_gap < 1e-3
    assert proof.ratio == pytest.approx(0.0 if passes else 1.0, abs=0.01)


async def test_an_adapter_without_effect_at_training_cannot_pass(
    client: EngineClient, base: Base, probes: dict[str, Probes]
) -> None:
    without = replace(probes["docs"], adapter_logprobs=probes["docs"].base_logprobs)
    proof = await prove(client, base.model_name, "idle", without, FP32)
    assert not proof.passed
    assert "no effect" in str(proof.reason)


async def test_base_answers_stay_base_beside_adapter_traffic(
    engine: EngineProcess, client: EngineClient, base: Base, truth: dict[str, Rows], token_ids: TokenRows
) -> None:
    """vllm#48421: on a CPU, base rows of a mixed batch get the adapter in the last slot; ours keeps that slot empty."""
    alone = [await complete(engine, base.model_name, ids, 16) for ids in token_ids]
    adapted = {name: await complete(engine, name, token_ids[0], 16) for name in ("docs", "titles")}
    assert len({alone[0], *adapted.values()}) == 3  # else nothing could be told apart
    order = random.Random(0)
    for _ in range(N_ROUNDS):
        jobs = [complete(engine, base.model_name, ids, 16) for ids in token_ids]
        traffic = [complete(engine, order.choice(LOADED), ids, 24) for ids in token_ids]
        answers, scored, _ = await asyncio.gather(
            asyncio.gather(*jobs),
            client.prompt_logprobs(base.model_name, token_ids),
            asyncio.gather(*traffic),
        )
        assert answers == alone
        assert furthest(scored, truth["base"]) < 1e-3


async def test_scoring_probes_beside_traffic_never_stops_the_engine(
    engine: EngineProcess, client: EngineClient, base: Base, folders: dict[str, Path], token_ids: TokenRows
) -> None:
    """With an adapter slot on lm_head, vLLM 0.32.0 on a CPU ends at the first of these (see `linear_modules`)."""
    names = [base.model_name, *folders]
    jobs = [client.prompt_logprobs(name, token_ids) for name in names for _ in range(2)]
    traffic = [complete(engine, name, token_ids[0], 24) for name in names]
    scored, _ = await asyncio.gather(asyncio.gather(*jobs), asyncio.gather(*traffic))
    for once, again in zip(scored[::2], scored[1::2], strict=True):
        assert furthest(once, again) < 1e-3
    assert engine.alive()
    assert await client.healthy()


async def test_what_vllm_refuses_comes_back_with_its_words(
    client: EngineClient, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(BadRequest, match="already been loaded"):
        await client.load_adapter("docs", folders["docs"])
    with pytest.raises(BadRequest, match="does not exist"):
        await client.prompt_logprobs("nobody", [(1, 2)])
    config = (folders["docs"] / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config.replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(EngineFailed, match="DoRA"):
        await client.load_adapter("dora", tmp_path)
    with pytest.raises(BadRequest, match="cannot be found"):
        await client.unload_adapter("dora")


async def test_a_vllm_that_dies_at_start_is_noticed_with_its_reason(base: Base, tmp_path: Path) -> None:
    engine = EngineProcess(vllm_spec(base, "float32", 1, ("--no-such-flag",)), tmp_path / "engine.log", ROOT)
    engine.start()
    with pytest.raises(EngineFailed, match=r"engine vllm ended with code 2 during start; .*--no-such-flag"):
        await engine.wait_ready(200)
