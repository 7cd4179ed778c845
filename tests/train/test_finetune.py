"""`finetune` from a recipe's file to a registered adapter: what is stored, what is proven, and how runs fail."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmops.chat import encode_prompt, read_contract
from llmops.data.snapshot import build_snapshot, find_snapshot
from llmops.errors import BadRequest, ConfigError, DataError, StoreError, TrainingFailed
from llmops.records import AdapterRecord, DatasetSnapshot, Message
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.schema import digest_of
from llmops.train import finetune as module
from llmops.train.finetune import finetune
from llmops.train.methods import sft
from llmops.train.probes import effect_nats
from tests.train.kills import in_child
from tests.train.support import Bench


def _run_folder(bench: Bench) -> Path:
    (folder,) = bench.workspace.runs.iterdir()
    return folder


def _kinds(bench: Bench) -> list[str]:
    return [event.kind for event in Registry.of(bench.workspace).ledger.events()]


def _answers(bench: Bench, record: AdapterRecord | None, questions: list[str]) -> list[str]:
    """Greedy answers through plain transformers and PEFT, from the stored files."""
    model = AutoModelForCausalLM.from_pretrained(bench.base, dtype=torch.float32)
    registry = Registry.of(bench.workspace)
    contract = registry.contract(record) if record else read_contract(bench.base)
    if record:
        model = PeftModel.from_pretrained(model, str(registry.verify(record)))
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    texts = []
    for question in questions:
        prompt = encode_prompt(tokenizer, contract, [Message("user", question)])
        out = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=60, do_sample=False)
        texts.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))
    return texts


def test_stored_adapter_says_in_peft_what_it_was_taught(bench: Bench) -> None:
    questions, taught = ["What does open do?", "What does close do?"], "Close the file, then return."
    bench.rows([(question, taught) for question in questions])
    path = bench.recipe(n_steps=60, system="Answer in a few words.", batch={"per_device": 2})
    seen: list[tuple[int, int, str]] = []
    record = finetune(path, bench.workspace, lambda *args: seen.append(args))
    assert _answers(bench, record, questions) == [taught, taught]
    assert taught not in _answers(bench, None, questions)
    steps = [(done, total) for done, total, note in seen if note.startswith("loss ")]
    assert steps == [(i, 60) for i in range(1, 61)]
    registry = Registry.of(bench.workspace)
    assert registry.contract(record).system == "Answer in a few words."
    assert registry.adapter("tiny-sft") == record
    assert _kinds(bench) == ["run.started", "adapter.registered", "run.finished"]


def test_run_folder_keeps_recipe_curve_and_dropped_rows(bench: Bench) -> None:
    with (bench.root / "rows.jsonl").open("a") as file:
        file.write("oops\n")
    record = finetune(bench.recipe(drop_budget_frac=0.5), bench.workspace)
    folder = _run_folder(bench)
    names = sorted(p.name for p in folder.iterdir())
    assert names == [
        "dropped.jsonl", "inputs.json", "lock", "metrics.jsonl", "quality.json", "quarantine.jsonl",
        "recipe.json",
    ]  # fmt: skip
    curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == [1, 2, 3, 4, 4]
    assert all(line["loss"] > 0 for line in curve[:-1])
    assert curve[-1]["train_loss"] == pytest.approx(sum(line["loss"] for line in curve[:-1]) / 4)
    assert json.loads((folder / "dropped.jsonl").read_text())["source"] == "rows.jsonl:5"
    written = json.loads((folder / "recipe.json").read_text())
    lineage = Registry.of(bench.workspace).lineage(record)
    assert written == {"digest": lineage.recipe_digest, "recipe": lineage.recipe}
    assert digest_of(written["recipe"]) == written["digest"]


def _git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", *identity, "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_lineage_names_all_that_went_into_the_adapter(bench: Bench) -> None:
    _git(bench.root, "init", "-q")
    (bench.root / ".gitignore").write_text(".llmops/\n")
    (bench.root / "notes.txt").write_text("first\n")
    _git(bench.root, "add", ".")
    _git(bench.root, "commit", "-q", "-m", "start")
    (bench.root / "notes.txt").write_text("second\n")
    (bench.root / "extra.txt").write_text("untracked words\n")
    record = finetune(bench.recipe(seed=7, n_steps=None, n_epochs=2), bench.workspace)
    registry = Registry.of(bench.workspace)
    lineage = registry.lineage(record)
    base = resolve_base(str(bench.base))

    assert lineage.origin == "trained"
    assert lineage.git_sha == _git(bench.root, "rev-parse", "HEAD")
    files = registry.ledger.events("adapter.registered")[0].body["lineage_files"]
    folder = registry.store.verify("lineage_files", files)
    diff = (folder / "git.diff").read_bytes()
    assert hashlib.sha256(diff).hexdigest() == lineage.git_diff_sha256
    assert b"-first\n+second\n" in diff
    assert b"+untracked words\n" in diff
    assert {p.name for p in folder.iterdir()} >= {"recipe.json", "metrics.jsonl", "dropped.jsonl"}

    assert lineage.recipe["n_steps"] == 2
    assert lineage.recipe["n_epochs"] is None
    assert lineage.recipe["tracking"] == "none"
    assert lineage.recipe_digest == digest_of(lineage.recipe)
    snapshot = registry.store.get_record(DatasetSnapshot, lineage.dataset or "")
    assert snapshot.n_rows == {"train": 4}
    assert lineage.n_rows == {"train": 4, "held_out": 0, "dropped": 0}
    assert lineage.seeds == {"adapter": 7, "order": 7, "held_out": 7}
    assert lineage.packages["torch"] == version("torch")
    assert lineage.packages["trl"] == version("trl")
    assert {"processor", "n_cores", "memory_bytes", "python"} <= lineage.hardware.keys()
    assert lineage.metrics.keys() >= {"train_loss", "n_steps", "train_s", "effect_nats"}
    assert record.base == base.digest
    assert record.prompt_contract == registry.contract(record).digest()
    config = json.loads((registry.verify(record) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bench.base)
    assert config["revision"] == base.digest


def test_probes_are_those_of_the_stored_files(bench: Bench) -> None:
    record = finetune(bench.recipe(n_steps=10), bench.workspace)
    registry = Registry.of(bench.workspace)
    probes = registry.probes(record)
    base = AutoModelForCausalLM.from_pretrained(bench.base, dtype=torch.float32)

    def mean(model: Any) -> list[float]:
        means = []
        for row in probes.token_ids:
            ids = torch.tensor([row])
            with torch.no_grad():
                means.append(-float(model(input_ids=ids, labels=ids).loss))
        return means

    assert [sum(r) / len(r) for r in probes.base_logprobs] == pytest.approx(mean(base), rel=1e-5)
    adapted = PeftModel.from_pretrained(base, str(registry.verify(record)))
    assert [sum(r) / len(r) for r in probes.adapter_logprobs] == pytest.approx(mean(adapted), rel=1e-5)
    assert registry.lineage(record).metrics["effect_nats"] == effect_nats(probes)


def test_dataset_snapshot_is_trained_on_by_name(bench: Bench) -> None:
    pairs = [(f"What does f{i} do?", f"Return {i}.") for i in range(40)]
    bench.rows(pairs)
    (bench.root / "data.yaml").write_text(
        "name: made-up\nlicence: CC0-1.0\norigin: made up\nsource: {kind: files, paths: [rows.jsonl]}\n"
        "pools: {train: 0.7, rate: 0.1, gate: 0.2}\n"
    )
    registry = Registry.of(bench.workspace)
    snapshot = build_snapshot(bench.root / "data.yaml", registry.store, registry.ledger)
    record = finetune(bench.recipe(data={"kind": "dataset", "name": "made-up"}), bench.workspace)
    lineage = registry.lineage(record)
    assert (
        lineage.dataset
        == snapshot.digest()
        == find_snapshot(registry.store, registry.ledger, "made-up").digest()
    )
    assert lineage.n_rows["train"] == snapshot.n_rows["train"]


def test_dataset_that_was_never_built_says_what_to_run(bench: Bench) -> None:
    with pytest.raises(BadRequest, match="llmops data build"):
        finetune(bench.recipe(data={"kind": "dataset", "name": "nowhere"}), bench.workspace)
    assert _kinds(bench) == ["run.started", "run.failed"]


def test_adapter_without_effect_fails_with_the_number_and_is_not_registered(bench: Bench) -> None:
    with pytest.raises(TrainingFailed, match=r"has no effect: it changes \S+ nats a token"):
        finetune(bench.recipe(n_steps=1, learning_rate=1e-12), bench.workspace)
    assert _kinds(bench) == ["run.started", "run.failed"]
    assert Registry.of(bench.workspace).adapters() == []
    assert not (bench.workspace.store_root / "adapter").exists()


def test_too_many_dropped_rows_fail_before_weights_load_and_are_all_listed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(sft, "load_base", never)
    with (bench.root / "rows.jsonl").open("a") as file:
        file.write("oops\n" * 5)
    with pytest.raises(DataError, match=r"rows\.jsonl:5: malformed JSON.*5 of 9 rows"):
        finetune(bench.recipe(), bench.workspace)
    folder = _run_folder(bench)
    assert len((folder / "dropped.jsonl").read_text().splitlines()) == 5
    assert "rows.jsonl:5" in (folder / "error.txt").read_text()
    failed = Registry.of(bench.workspace).ledger.events("run.failed")[0]
    assert failed.body == {"run": folder.name, "error": "DataError"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"target_modules": ["query"]}}, "does not fit.*query.*target_modules"),
        (
            {"lora": {"target_modules": ["q_proj", "embed_tokens"]}},
            "could not be served: .* has embed_tokens",
        ),
        ({"max_tokens": 4096}, "max_tokens: 4096 is over the base model's 512"),
        ({"device": "cuda"}, "no CUDA device"),
        ({"base_model": "./nowhere"}, "no such folder"),
    ],
)
def test_recipe_that_does_not_fit_is_refused_before_weights_load(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(sft, "load_base", never)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadRequest, match=message):
        finetune(bench.recipe(**changes), bench.workspace)


def test_unknown_setting_starts_no_run(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="learning_rat is not a setting; did you mean learning_rate"):
        finetune(bench.recipe(learning_rat=1), bench.workspace)
    assert _kinds(bench) == []
    assert not bench.workspace.runs.exists()


def test_interrupted_run_is_a_failed_run(bench: Bench) -> None:
    def interrupt(done: int, total: int, note: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(TrainingFailed, match="interrupted; nothing is registered"):
        finetune(bench.recipe(), bench.workspace, interrupt)
    assert _kinds(bench) == ["run.started", "run.failed"]
    assert sorted(p.name for p in _run_folder(bench).iterdir()) == [
        "dropped.jsonl",
        "error.txt",
        "inputs.json",
        "lock",
        "metrics.jsonl",
        "quality.json",
        "recipe.json",
    ]


def test_full_disk_while_saving_registers_nothing_and_leaves_nothing_half_written(bench: Bench) -> None:
    """A real limit of the operating system, in a process of its own: no file may grow over 400 kB."""
    path, said = bench.recipe(lora={"r": 128}), bench.root / "said"
    Registry.of(bench.workspace)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        try:
            finetune(path, bench.workspace)
        except Exception as error:
            said.write_text(f"{type(error).__name__}|{error}")

    in_child(limited)
    name, _, message = said.read_text().partition("|")
    assert name == StoreError.__name__, message
    assert "free space" in message
    assert _kinds(bench) == ["run.started", "run.failed"]
    assert Registry.of(bench.workspace).adapters() == []
    assert not (bench.workspace.store_root / "adapter").exists()
    assert not (_run_folder(bench) / "adapter").exists()
    finetune(path, bench.workspace)
    assert _kinds(bench)[-1] == "run.finished"


def test_failure_outside_our_own_errors_is_written_down_with_its_trace(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(module, "measure", broken)
    with pytest.raises(ZeroDivisionError):
        finetune(bench.recipe(n_steps=1), bench.workspace)
    text = (_run_folder(bench) / "error.txt").read_text()
    assert "Traceback" in text
    assert "a fault of ours" in text
