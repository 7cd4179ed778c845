"""Distillation: divergences against TRL's, what the student takes over, and teachers that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.errors import ConfigError
from llmops.registry.adapters import Registry
from llmops.train.importer import ImportRequest, import_adapter
from llmops.train.methods.distill import build_trainer, divergences, load_teacher, train_adapter
from llmops.train.recipe import ModelTeacher
from tests.tiny import build_tiny_adapter, build_tiny_model
from tests.train.judging import ignore, set_up_rows
from tests.train.support import Bench

KINDS = ("forward_kl", "reverse_kl", "jsd")


def _teacher(**values: Any) -> ModelTeacher:
    return ModelTeacher(kind="model", **{"base_model": "x"} | values)


@pytest.mark.parametrize(
    ("kind", "beta"), [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.5), ("jsd", 0.2)]
)
def test_divergence_and_its_gradient_equal_trls(
    monkeypatch: pytest.MonkeyPatch, kind: str, beta: float
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(1)
    student, teacher = (3 * torch.randn(7, 50, generator=generator) for _ in range(2))
    settings = _teacher(divergence=kind, temperature=1.7, **({"jsd_beta": beta} if kind == "jsd" else {}))
    found, theirs = (student.clone().requires_grad_() for _ in range(2))
    mine = divergences(settings, found, teacher).sum()
    expected = GKDTrainer.generalized_jsd_loss(theirs, teacher, beta=beta, temperature=1.7, reduction="sum")
    mine.backward()
    expected.backward()
    assert mine.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(found.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_divergences_of_two_coins_are_those_of_the_textbook() -> None:
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert divergences(_teacher(), student, teacher).tolist() == pytest.approx([forward])
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergences(_teacher(divergence="reverse_kl"), student, teacher).tolist() == pytest.approx(
        [reverse]
    )
    assert divergences(_teacher(divergence="jsd"), teacher, teacher).tolist() == pytest.approx(
        [0.0], abs=1e-7
    )


def test_loss_is_the_mean_divergence_at_the_answers_alone(bench: Bench, tmp_path: Path) -> None:
    """By hand, row by row, without padding: both models' whole tables, compared where the mask is 1."""
    other = build_tiny_model(tmp_path / "teacher", seed=9, layers=1)
    method = {"kind": "distill", "teacher": {"kind": "model", "base_model": str(other), "sft_weight": 0.5}}
    recipe, session, order = set_up_rows(bench, method, n_steps=2, batch={"per_device": 2, "accumulation": 2})
    seen: list[dict[str, float]] = []
    trainer = build_trainer(recipe, session, order, lambda s, n, f: seen.append(f))
    teacher = load_teacher(recipe, session)
    total, n_labels = 0.0, 0
    for i in order[:4]:
        encoded = session.examples.train[i].encoded
        ids = torch.tensor([encoded.input_ids])
        with torch.no_grad():
            s, t = (m(input_ids=ids).logits[0, :-1].log_softmax(-1) for m in (trainer.model.eval(), teacher))
        for k, scored in enumerate(encoded.loss_mask[1:]):
            if scored:
                total += float((t[k].exp() * (t[k] - s[k])).sum()) - 0.5 * float(
                    s[k, encoded.input_ids[k + 1]]
                )
                n_labels += 1
    trainer.train()
    assert seen[0]["loss"] == pytest.approx(total / n_labels, rel=1e-4)


@pytest.mark.walk
def test_student_becomes_its_teacher(bench: Bench, tiny_adapter: Path) -> None:
    """The teacher is the student's own base with an adapter: what it says can be learnt, and unseen rows show it."""
    import_adapter(ImportRequest(tiny_adapter, str(bench.base), "tutor"), bench.workspace)
    bench.rows([(f"What is f{i}?", f"It is value {i}, and {i} again.") for i in range(30)])
    method = {"kind": "distill", "teacher": {"kind": "model", "adapter": "tutor"}}
    recipe, session, _ = set_up_rows(
        bench, method, n_steps=25, batch={"per_device": 8}, learning_rate=2e-2, held_out_frac=0.2
    )
    end = train_adapter(recipe, session, ignore)
    assert end["held_out_loss"] < 0.5 * end["held_out_loss_start"]


def test_command_line_distills_and_lineage_names_the_teachers_digest(
    bench: Bench, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.root)
    tutor = import_adapter(ImportRequest(tiny_adapter, str(bench.base), "tutor"), bench.workspace)
    method = {"kind": "distill", "teacher": {"kind": "model", "adapter": "tutor", "divergence": "jsd"}}
    path = bench.recipe(name="pupil", method=method, n_steps=3)
    done = CliRunner().invoke(app, ["finetune", str(path), "--json"])
    assert done.exit_code == 0, done.output
    registry = Registry.of(bench.workspace)
    lineage = registry.lineage(registry.adapter("pupil"))
    assert lineage.recipe["method"]["teacher"]["adapter"] == tutor.adapter
    assert json.loads(done.stdout)["lineage"]["metrics"]["train_loss"] > 0


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"kind": "model"}, "method.teacher: names no teacher .*; give base_model, adapter, or both"),
        ({"kind": "model", "adapter": "nobody"}, "method.teacher.adapter: adapter nobody: no such adapter"),
        (
            {"kind": "model", "base_model": "/nowhere"},
            "method.teacher.base_model: base model /nowhere: no such",
        ),
    ],
)
def test_teachers_that_are_not_there_are_refused(bench: Bench, teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_up_rows(bench, {"kind": "distill", "teacher": teacher})


def test_teacher_with_another_tokenizer_is_refused_with_what_to_do(bench: Bench, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["lstrip"] = True
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    method = {"kind": "distill", "teacher": {"kind": "model", "base_model": str(other)}}
    with pytest.raises(
        ConfigError, match=r"has another tokenizer than .*, so their tokens cannot be compared"
    ):
        set_up_rows(bench, method)


def test_teacher_adapter_of_another_base_is_refused(bench: Bench, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", seed=5)
    adapter = build_tiny_adapter(other, tmp_path / "its")
    import_adapter(ImportRequest(adapter, str(other), "tutor"), bench.workspace)
    teacher = {"kind": "model", "adapter": "tutor", "base_model": str(bench.base)}
    with pytest.raises(ConfigError, match=r"method.teacher.adapter: tutor@.* belongs to .* name that base"):
        set_up_rows(bench, {"kind": "distill", "teacher": teacher})


@pytest.mark.walk
def test_bfloat16_and_four_bits_learn_too(bench: Bench, tiny_adapter: Path) -> None:
    pytest.importorskip("bitsandbytes")
    import_adapter(ImportRequest(tiny_adapter, str(bench.base), "tutor"), bench.workspace)
    bench.rows([(f"What is f{i}?", f"It is value {i}.") for i in range(16)])
    method = {"kind": "distill", "teacher": {"kind": "model", "adapter": "tutor"}}
    recipe, session, _ = set_up_rows(
        bench, method, n_steps=8, learning_rate=1e-2, held_out_frac=0.25, precision="bf16", quantization="nf4"
    )
    end = train_adapter(recipe, session, ignore)
    assert end["held_out_loss"] < 0.9 * end["held_out_loss_start"]
