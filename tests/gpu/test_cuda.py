"""What only a CUDA device can show; `make test-gpu` on a machine that has one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from llmops.errors import Interrupted
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from llmops.train.finetune import finetune, resume
from tests.loop import DATA, GATE, NAME, PROFILE, RECIPE, SUITE, Loop
from tests.tiny import build_tiny_model
from tests.train.support import Bench

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    base = build_tiny_model(tmp_path / "base")
    loop = Loop(tmp_path, tmp_path / "cache")
    (tmp_path / "llmops.yaml").write_text("name: cuda\n")
    loop.write_rows()
    values = {"base": base, "r": 16, "alpha": 32, "n_steps": 60, "learning_rate": "1e-2", "seed": 0}
    for template, name in ((DATA, "data.yaml"), (GATE, "gate.yaml"), (SUITE, "suite.yaml")):
        loop.write(name, template, kind="superior", bound="by: 0", n_cases=24)
    loop.write("recipe.yaml", RECIPE.replace("device: cpu", "device: auto"), tracking="none", **values)
    loop.write("serve.yaml", PROFILE.replace("device: cpu", "device: auto"), base=base)
    return loop


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loop_trains_and_serves_on_the_gpu_by_itself(loop: Loop, precision: str) -> None:
    """`auto` must find the device in training and in serving, and the proof must hold between the two."""
    recipe = loop.root / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("precision: fp32", f"precision: {precision}"))
    loop.llmops("data", "build", "data.yaml")
    loop.llmops("finetune", "recipe.yaml")
    lineage = json.loads(loop.llmops("adapter", "show", "latest", "--json").out)["lineage"]
    assert "cuda" in json.dumps(lineage["hardware"]).lower()
    loop.llmops("serve", "serve.yaml", "--detach")
    try:
        loop.llmops("eval", "suite.yaml", "--gate", "gate.yaml")
        loop.llmops("gate", "check", "gate.yaml")
        loop.llmops("release", "promote", NAME)
        engine = json.loads(loop.llmops("status", "--json").out)["serving"]["engine"]
        assert engine["device"] not in ("cpu", "")
        assert loop.answered_by(NAME, "add 7")
    finally:
        loop.llmops("stop")


@pytest.mark.parametrize(
    "arithmetic",
    [{"precision": "fp32"}, {"precision": "bf16"}, {"precision": "bf16", "quantization": "nf4"}],
    ids=["fp32", "bf16", "nf4"],
)
def test_preferences_train_a_successor_on_the_gpu(
    workspace: Workspace, tiny_model: Path, arithmetic: dict[str, str]
) -> None:
    if "quantization" in arithmetic:
        pytest.importorskip("bitsandbytes")
    bench = Bench(workspace, tiny_model)
    bench.rows()
    bench.prefer([(f"What does f{i} do?", f"Return value {i}.", f"It is function {i}!") for i in range(40)])
    parent = finetune(bench.recipe(device="auto", **arithmetic), workspace)
    settings = {"n_steps": 20, "learning_rate": 3e-3, "held_out_frac": 0.25, **arithmetic}
    record = finetune(bench.dpo_recipe(device="auto", **settings), workspace)
    lineage = Registry.of(workspace).lineage(record)
    assert lineage.hardware["device"] == "cuda"
    assert lineage.continues == parent.adapter
    assert lineage.metrics["held_out_loss"] < 0.7 * lineage.metrics["held_out_loss_start"]
    assert lineage.metrics["held_out_accuracy"] == 1.0


def test_preference_training_on_the_gpu_follows_the_cpu(workspace: Workspace, tiny_model: Path) -> None:
    bench = Bench(workspace, tiny_model)
    bench.rows()
    bench.prefer([(f"What does f{i} do?", f"Return value {i}.", f"It is function {i}!") for i in range(16)])
    finetune(bench.recipe(), workspace)
    figures = []
    for device in ("cpu", "cuda"):
        record = finetune(bench.dpo_recipe(device=device, n_steps=8, learning_rate=1e-3), workspace)
        figures.append(Registry.of(workspace).lineage(record).metrics)
    assert figures[1]["train_loss"] == pytest.approx(figures[0]["train_loss"], rel=0.01)
    assert figures[1]["effect_nats"] == pytest.approx(figures[0]["effect_nats"], rel=0.01)


@pytest.mark.parametrize(
    "arithmetic",
    [{"precision": "bf16"}, {"precision": "fp16"}, {"precision": "bf16", "quantization": "int8"}],
    ids=["bf16", "fp16", "int8"],
)
def test_interrupted_run_on_the_gpu_goes_on_to_the_same_adapter(
    workspace: Workspace, tiny_model: Path, arithmetic: dict[str, str]
) -> None:
    """fp16 scales its loss: the scale and its count of good steps are state too."""
    if "quantization" in arithmetic:
        pytest.importorskip("torchao")
    bench = Bench(workspace, tiny_model)
    bench.rows()
    path = bench.recipe(
        device="cuda", n_steps=12, learning_rate=1e-3, lora={"r": 8, "dropout": 0.1}, **arithmetic
    )
    unbroken = finetune(path, workspace)

    def interrupt(done: int, _total: int, note: str) -> None:
        if done == 6 and note.startswith("loss "):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        finetune(path, workspace, interrupt)
    assert resume(path, workspace).adapter == unbroken.adapter
    losses = Registry.of(workspace).lineage(unbroken).metrics
    assert losses["effect_nats"] > 0.01
