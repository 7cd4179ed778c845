"""Several processes train one adapter: the same one that a single process makes, or one clear line why not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llmops.errors import ConfigError, TrainingFailed
from llmops.registry.adapters import Registry
from llmops.train.finetune import finetune
from llmops.train.launch import starts
from llmops.train.memory.heap import WITHOUT_CACHES
from llmops.train.methods import sft
from llmops.train.methods.sft import build_trainer
from llmops.train.ranks import Place, any_of_all, from_first, place, require_processes, require_strategy
from llmops.train.recipe import load_recipe
from llmops.train.sharding import require_sharded, sharded_frac
from tests.train.support import Bench

ROWS = [(f"What does f{i} do{'!' * (i % 7)}?", f"Return value {i}{' again' * (i % 5)}.") for i in range(24)]


def _llmops(bench: Bench, *words: str, timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "llmops.cli", *words],
        cwd=bench.root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def _adapters(bench: Bench) -> list[str]:
    """Digests in order of registration; one that was made twice stands twice."""
    return [str(e.body["adapter"]) for e in Registry.of(bench.workspace).ledger.events("adapter.registered")]


def _pair(bench: Bench, **launch: Any) -> tuple[str, str]:
    """The same steps by one process and by two: files of the recipes."""
    bench.rows(ROWS)
    common: dict[str, Any] = {"n_steps": 5, "learning_rate": 1e-3}
    bench.recipe("one.yaml", batch={"per_device": 2, "accumulation": 2}, **common)
    bench.recipe("two.yaml", batch={"per_device": 2}, launch={"processes": 2, **launch}, **common)
    return "one.yaml", "two.yaml"


@pytest.mark.walk
@pytest.mark.parametrize("runner", ["torchrun", pytest.param("ray", marks=pytest.mark.slow)])
def test_two_processes_make_the_adapter_that_one_makes(bench: Bench, runner: str) -> None:
    if runner == "ray":
        pytest.importorskip("ray")
    one, two = _pair(bench, runner=runner)
    alone = finetune(bench.root / one, bench.workspace)
    done = _llmops(bench, "finetune", two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("adapter  tiny-sft@")
    assert _adapters(bench) == [alone.adapter, alone.adapter]


@pytest.mark.walk
def test_two_processes_learn_preferences_as_one_does(bench: Bench) -> None:
    bench.prefer([(f"What does f{i} do?", f"Return value {i}.", f"It is function {i}!") for i in range(16)])
    common: dict[str, Any] = {"continue_from": None, "lora": {"r": 8, "alpha": 16}, "n_steps": 3}
    bench.dpo_recipe("one.yaml", batch={"per_device": 2, "accumulation": 2}, **common)
    bench.dpo_recipe("two.yaml", batch={"per_device": 2}, launch={"processes": 2}, **common)
    one, two = _figures(bench, "tiny-dpo")
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    assert two["effect_nats"] == pytest.approx(one["effect_nats"], rel=1e-3)


def _figures(bench: Bench, name: str) -> list[dict[str, float]]:
    """Of the adapter that one.yaml makes in this process, and of the one that two.yaml makes in two."""
    registry = Registry.of(bench.workspace)
    alone = registry.lineage(finetune(bench.root / "one.yaml", bench.workspace)).metrics
    done = _llmops(bench, "finetune", "two.yaml")
    assert done.returncode == 0, done.stderr
    return [alone, registry.lineage(registry.adapter(name)).metrics]


REWARDS = """
def vowels(prompt, completion, reference):
    return sum(letter in "aeiou" for letter in completion) / 16
"""


@pytest.mark.walk
def test_two_processes_sample_and_learn_as_one_does(bench: Bench) -> None:
    """Two answers a process and four to a prompt: no group of answers lies in one process alone."""
    bench.rows(ROWS)
    (bench.root / "rewards.py").write_text(REWARDS)
    method = {"kind": "grpo", "n_answers": 4, "max_answer_tokens": 12}
    method["rewards"] = [{"kind": "python", "function": "rewards.py::vowels"}]
    common: dict[str, Any] = {"method": method, "n_steps": 4, "learning_rate": 1e-2, "held_out_frac": 0.2}
    bench.recipe("one.yaml", batch={"per_device": 2, "accumulation": 4}, **common)
    bench.recipe("two.yaml", batch={"per_device": 2, "accumulation": 2}, launch={"processes": 2}, **common)
    one, two = _figures(bench, "tiny-sft")
    assert one["n_tokens"] == two["n_tokens"]
    assert one["train_answer_tokens"] == two["train_answer_tokens"]
    assert two["train_reward"] == pytest.approx(one["train_reward"], rel=1e-6)
    assert two["held_out_reward"] == pytest.approx(one["held_out_reward"], rel=1e-6)
    assert one["held_out_reward"] != one["held_out_reward_start"]
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
    assert two["effect_nats"] == pytest.approx(one["effect_nats"], rel=1e-3)


@pytest.mark.walk
def test_fault_of_the_recipe_is_said_once_and_keeps_its_exit_code(bench: Bench) -> None:
    bench.recipe(launch={"processes": 2}, data={"kind": "files", "paths": ["gone.jsonl"]})
    done = _llmops(bench, "finetune", "recipe.yaml")
    assert done.returncode == 2
    (error,) = _errors(done)
    assert "gone.jsonl: no such file" in error
    assert "Traceback" not in done.stderr
    assert _adapters(bench) == []


@pytest.mark.walk
def test_killed_process_ends_the_run_and_is_named(bench: Bench) -> None:
    _, two = _pair(bench)
    bench.recipe(two, batch={"per_device": 2}, launch={"processes": 2}, n_steps=100_000)
    command = [sys.executable, "-P", "-m", "llmops.cli", "finetune", two]
    run = subprocess.Popen(
        command, cwd=bench.root, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        _wait_for_steps(bench, run)
        (second,) = _ranks(run.pid, "1")
        environment = Path(f"/proc/{second}/environ").read_bytes()
        # glibc ends each of its settings with a zero byte in the memory that this file shows.
        assert WITHOUT_CACHES.encode() in environment.replace(b"\0", b":")
        os.kill(second, signal.SIGKILL)
        _, stderr = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 5
    assert "process 1 of the run: was ended by SIGKILL" in stderr
    assert _adapters(bench) == []


@pytest.mark.walk
def test_two_processes_that_were_ended_go_on_to_the_same_adapter(bench: Bench) -> None:
    bench.rows(ROWS)
    common: dict[str, Any] = {"n_steps": 100, "learning_rate": 1e-4}
    recipe = bench.recipe(batch={"per_device": 2}, launch={"processes": 2}, **common)
    alone = bench.recipe("one.yaml", batch={"per_device": 2, "accumulation": 2}, **common)
    command = [sys.executable, "-P", "-m", "llmops.cli", "finetune", recipe.name]
    run = subprocess.Popen(
        command, cwd=bench.root, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        _wait_for_steps(bench, run)
        run.terminate()
        _, stderr = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 143, stderr
    (error,) = (line for line in stderr.splitlines() if "interrupted" in line)
    assert f"llmops finetune --resume {recipe.name}" in error
    assert _adapters(bench) == []
    done = _llmops(bench, "finetune", "--resume", recipe.name)
    assert done.returncode == 0, done.stderr
    unbroken = finetune(alone, bench.workspace)
    assert _adapters(bench) == [unbroken.adapter, unbroken.adapter]


def _wait_for_steps(bench: Bench, run: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while time.monotonic() < until and run.poll() is None:
        if any(path.stat().st_size for path in bench.workspace.runs.glob("*/metrics.jsonl")):
            return
        time.sleep(0.1)
    pytest.fail("no step was taken")


def _ranks(parent: int, rank: str) -> list[int]:
    """Processes of a rank among the children of `parent`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"\nPPid:\t{parent}\n" in (folder / "status").read_text()
            if ours and f"\0RANK={rank}\0".encode() in b"\0" + (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


SHARD = """
import sys, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from llmops.train.ranks import any_of_all, from_first, join, place
from llmops.train.sharding import require_sharded, whole_adapter

join("cpu")
assert from_first({"told": place().rank}) == {"told": 0}
assert any_of_all(place().rank == 1) and not any_of_all(False)

def build():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))

def step(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    ids = torch.arange(40).reshape(2, 20)
    for _ in range(2):  # B starts at 0: A moves from the second step on
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

plain = build()
step(plain)
sharded = build()
mesh = init_device_mesh("cpu", (place().world,))
for layer in sharded.base_model.model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(sharded, mesh=mesh)
require_sharded(sharded)
step(sharded)
gathered = whole_adapter(sharded)
if place().first:
    sharded.save_pretrained(sys.argv[2], state_dict=gathered)
    from safetensors.torch import load_file
    saved = load_file(Path(sys.argv[2]) / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(plain)
    assert saved.keys() == expected.keys()
    assert all(torch.allclose(saved[k], expected[k], atol=1e-6) for k in saved)
    assert any(saved[k].abs().max() > 0 for k in saved if "lora_B" in k)
    print("equal")
torch.distributed.destroy_process_group()
"""


@pytest.mark.walk
def test_sharded_model_trains_and_saves_as_a_whole_one_does(tiny_model: Path, tmp_path: Path) -> None:
    """Raw FSDP2 on a CPU mesh: what accelerate does on CUDA only, with our check and our way of saving."""
    code = tmp_path / "shard.py"
    code.write_text(SHARD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(code), str(tiny_model), str(tmp_path / "saved")],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["equal"]


def test_model_that_was_left_whole_is_noticed() -> None:
    model = torch.nn.Linear(2, 2)
    assert sharded_frac(model) == 0
    with pytest.raises(Exception, match="0% of the parameters are sharded"):
        require_sharded(model)


def test_run_that_was_to_shard_and_did_not_ends_before_its_first_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_to_shard(*given: Any) -> Any:
        trainer = build_trainer(*given)
        trainer.args.fsdp = True  # what accelerate passes over on a CPU
        return trainer

    monkeypatch.setattr(sft, "build_trainer", asked_to_shard)
    bench.rows(ROWS)
    with pytest.raises(TrainingFailed, match="fsdp: 0% of the parameters are sharded, not all"):
        finetune(bench.recipe(n_steps=2), bench.workspace)
    assert _adapters(bench) == []


def test_sharding_is_refused_where_nothing_would_be_sharded(bench: Bench) -> None:
    recipe = load_recipe(bench.recipe(launch={"processes": 2, "strategy": "fsdp"}))
    with pytest.raises(ConfigError, match="fsdp on cpu: accelerate would train without sharding"):
        require_strategy(recipe, "cpu", "recipe.yaml")
    require_strategy(recipe, "cuda", "recipe.yaml")
    packed = load_recipe(
        bench.recipe(launch={"processes": 2, "strategy": "fsdp"}, quantization="nf4", precision="bf16")
    )
    with pytest.raises(ConfigError, match="packed weights are not sharded"):
        require_strategy(packed, "cuda", "recipe.yaml")


def test_fsdp_of_one_process_is_no_recipe(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="fsdp shards over processes"):
        load_recipe(bench.recipe(launch={"strategy": "fsdp"}))


def test_another_number_of_processes_than_the_recipes_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(bench.recipe(launch={"processes": 4}))
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert place() == Place(1, 1, 2)
    with pytest.raises(ConfigError, match=r"launch\.processes: 4, but the launcher started 2"):
        require_processes(recipe, "recipe.yaml")
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ConfigError, match="RANK=one"):
        place()


def test_a_process_alone_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert place() == Place(0, 0, 1)
    assert from_first("mine") == "mine"
    assert any_of_all(True)
    assert not any_of_all(False)


def test_each_process_has_its_own_exact_command(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    recipe = load_recipe(bench.recipe(launch={"processes": 4}))
    found = starts(recipe, ("recipe.yaml",))
    assert [s.environment["RANK"] for s in found] == ["0", "1", "2", "3"]
    assert {s.environment["OMP_NUM_THREADS"] for s in found} == {"2"}
    command = (sys.executable, "-P", "-m", "llmops.cli", "finetune", "recipe.yaml")
    assert {s.words for s in found} == {command}
    assert str(found[1]).startswith("RANK=1 LOCAL_RANK=1 WORLD_SIZE=4 ")
    alone = load_recipe(bench.recipe())
    assert [str(s) for s in starts(alone, ("recipe.yaml",))] == [" ".join(command)]
