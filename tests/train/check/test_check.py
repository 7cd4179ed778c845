"""`llmops finetune --check` and `--dry-run`, entered through the command line on a tiny model."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from llmops.cli.commands import app
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from llmops.train.check import memory as memory_check
from tests.tiny import build_tiny_model
from tests.train.support import Bench


@pytest.fixture
def blind(workspace: Workspace, tmp_path: Path) -> Bench:
    """A bench whose base has weights that nobody could load."""
    base = build_tiny_model(tmp_path / "blind")
    (base / "model.safetensors").write_bytes(b"these are no weights")
    bench = Bench(workspace, base)
    bench.rows()
    return bench


def _run(bench: Bench, recipe: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(bench.root))
    return CliRunner().invoke(app, ["finetune", str(recipe), *options])


def test_good_recipe_is_ready_and_its_weights_are_not_read(
    blind: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = _run(blind, blind.recipe(), "--check", "--json", monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["schema"] == "llmops.preflight/1"
    assert said["verdict"] == "ready"
    assert said["rows"] == {"train": 4, "held_out": 0, "dropped": 0}
    assert {f["severity"] for f in said["findings"]} <= {"ok", "warn"}
    assert {"rows", "length", "device", "memory", "disk", "serving", "chat template", "end token"} <= {
        f["check"] for f in said["findings"]
    }
    # LoRA of rank 16 on a layer of in x out has 16 * (in + out) parameters; the tiny model's seven, in two layers.
    a_layer = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)
    n_parameters = 2 * 16 * a_layer
    assert said["memory"]["parts"]["adapter"] == 4 * n_parameters
    assert said["memory"]["parts"]["optimizer"] == 8 * n_parameters
    assert said["memory"]["verdict"] == "fits"
    assert said["disk"]["adapter_bytes"] == 4 * n_parameters
    assert not blind.workspace.runs.exists()


def test_everything_wrong_is_told_at_once(blind: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with (blind.root / "rows.jsonl").open("a") as file:
        file.write("oops\n")
    recipe = blind.recipe(
        max_tokens=4096, device="cuda", serve={"version": "0.32.0", "max_lora_rank": 16}, lora={"r": 32}
    )
    done = _run(blind, recipe, "--check", monkeypatch=monkeypatch)
    assert done.exit_code == 2
    refused = [line for line in done.stdout.splitlines() if line.startswith("refuse")]
    for text in (
        "no CUDA device",
        "rank 32 is over the engine's max_lora_rank 16",
        "max_tokens: 4096 is over the base model's 512",
        "rows.jsonl:5: malformed JSON",
    ):
        assert sum(text in line for line in refused) == 1, (text, done.stdout)
    assert len(refused) == 4
    assert done.stdout.splitlines()[-1].endswith("refused for 4 reasons")


@pytest.mark.parametrize(
    ("changes", "check", "text"),
    [
        ({"learning_rat": 1}, "recipe", "did you mean learning_rate"),
        ({"base_model": "./nowhere"}, "base model", "no such folder"),
        ({"lora": {"target_modules": ["query"]}}, "adapter", "lora.target_modules"),
        ({"data": {"kind": "dataset", "name": "nowhere"}}, "data", "llmops data build"),
        ({"serve": {"max_lora_rank": 20}}, "serving", "vLLM does not start with 20; give one of 1, 8, 16"),
        ({"continue_from": "nobody", "lora": None}, "continue_from", "no public name"),
    ],
)
def test_each_problem_has_its_line(
    blind: Bench, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], check: str, text: str
) -> None:
    done = _run(blind, blind.recipe(**changes), "--check", monkeypatch=monkeypatch)
    assert done.exit_code == 2
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("refuse")]
    assert line.split(maxsplit=1)[1].startswith(check)
    assert text in line


def test_unknown_version_of_vllm_is_said_to_be_unknown(blind: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    done = _run(blind, blind.recipe(serve={"version": "0.99.1"}), "--check", monkeypatch=monkeypatch)
    assert done.exit_code == 0
    assert "what vLLM 0.99.1 refuses is not known here, only what 0.32, 0.33 do" in done.stdout


def test_run_that_does_not_fit_says_what_to_change_and_is_not_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda _device: 200_000_000)
    done = _run(bench, bench.recipe(), "--check", monkeypatch=monkeypatch)
    assert done.exit_code == 2
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("refuse")]
    assert re.search(r"memory +does not fit: about \d+ MB \(\d+ MB to [\d.]+ .B\) of 200 MB on cpu", line)
    assert "gradient_checkpointing: true saves" in line
    assert "batch.per_device: 1 with batch.accumulation: 4 saves" in line
    assert "memory: warn goes on all the same" in line
    monkeypatch.setattr(memory_check, "changes", lambda *_: [])  # each is an estimate of its own
    refused = _run(bench, bench.recipe(), monkeypatch=monkeypatch)
    assert "does not fit: about" in str(refused.exception)
    assert Registry.of(bench.workspace).adapters() == []
    warned = _run(bench, bench.recipe(memory="warn"), "--check", monkeypatch=monkeypatch)
    assert warned.exit_code == 0


def test_run_that_may_fit_is_warned_of_and_not_refused(blind: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    said = json.loads(_run(blind, blind.recipe(), "--check", "--json", monkeypatch=monkeypatch).stdout)
    low, high = said["memory"]["range_bytes"]
    assert low < said["memory"]["total_bytes"] < high
    monkeypatch.setattr(memory_check, "available_bytes", lambda _device: low + 1_000_000)
    monkeypatch.setattr(memory_check, "changes", lambda *_: [])  # each is an estimate of its own
    done = _run(blind, blind.recipe(), "--check", monkeypatch=monkeypatch)
    assert done.exit_code == 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("warn") and "memory" in line]
    assert "may not fit: about" in line


def test_settings_and_processes_of_a_run_are_looked_at(blind: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    several = blind.recipe(launch={"processes": 2})
    shown = _run(blind, several, "--dry-run", "--set", "lora.r=8", monkeypatch=monkeypatch)
    assert shown.exit_code == 0, shown.output
    assert yaml.safe_load(shown.stdout)["lora"]["r"] == 8
    commands = [line for line in shown.stdout.splitlines() if line.startswith("# ")]
    assert [f"RANK={i} " in line for i, line in enumerate(commands)] == [True, True]
    assert all("WORLD_SIZE=2" in line and line.endswith("--set lora.r=8") for line in commands)
    done = _run(blind, several, "--check", "--set", "launch.strategy=fsdp", monkeypatch=monkeypatch)
    assert done.exit_code == 2
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("refuse")]
    assert "launch.strategy: fsdp on cpu" in line


def test_teacher_that_cannot_be_reached_is_not_asked(blind: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher: dict[str, Any] = {"kind": "endpoint", "url": "http://127.0.0.1:9", "model": "nobody"}
    teacher |= {"decoding": {"temperature": 0, "max_tokens": 32}}
    recipe = blind.recipe(method={"kind": "distill", "teacher": teacher})
    for option in ("--check", "--dry-run"):
        done = _run(blind, recipe, option, monkeypatch=monkeypatch)
        assert done.exit_code == 0, done.output
        assert option == "--dry-run" or "nobody is not asked: rows are counted with their own" in done.stdout
    assert yaml.safe_load(done.stdout)["method"]["teacher"]["url"] == "http://127.0.0.1:9"


@pytest.mark.walk
def test_command_of_the_dry_run_trains_the_adapter_that_finetune_trains(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = bench.recipe()
    shown = _run(bench, recipe, "--dry-run", monkeypatch=monkeypatch)
    assert shown.exit_code == 0, shown.output
    (command,) = [line[2:] for line in shown.stdout.splitlines() if line.startswith("# ")]
    assert "n_steps: 4" in shown.stdout
    assert not bench.workspace.runs.exists()
    subprocess.run(command, shell=True, check=True, cwd="/", capture_output=True)
    (by_command,) = Registry.of(bench.workspace).adapters()
    done = _run(bench, recipe, "--json", monkeypatch=monkeypatch)
    assert json.loads(done.stdout)["adapter"]["adapter"] == by_command.adapter
