"""What only a CUDA device can show; `make test-gpu` on a machine that has one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.loop import DATA, GATE, NAME, PROFILE, RECIPE, SUITE, Loop
from tests.tiny import build_tiny_model

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
        loop.llmops("eval", "suite.yaml")
        loop.llmops("gate", "check", "gate.yaml")
        loop.llmops("release", "promote", NAME)
        engine = json.loads(loop.llmops("status", "--json").out)["serving"]["engine"]
        assert engine["device"] not in ("cpu", "")
        assert loop.answered_by(NAME, "add 7")
    finally:
        loop.llmops("stop")
