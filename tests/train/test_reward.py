"""Reward models: loss and steps against TRL's own trainer, what is registered, and where they are refused."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardTrainer
from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.errors import BadRequest, ConfigError, TrainingFailed
from llmops.records import RewardProbes
from llmops.registry.adapters import Registry
from llmops.registry.releases import request_override
from llmops.train.finetune import finetune
from llmops.train.methods.reward import build_trainer, train_adapter, trainer_settings
from llmops.train.model import load_with_head, reward_config
from llmops.train.plan import plan
from llmops.train.rewards import RewardModel, require_spread, reward_pad_id
from llmops.upkeep.reach import missing, reachable, stored
from tests.train.judging import STYLE, AllFigures, ignore, set_up, weights
from tests.train.support import Bench


def test_loss_and_weights_equal_trls_own_trainer(bench: Bench) -> None:
    """TRL encodes the texts itself, makes the head and the adapter itself, and pads with the same token."""
    recipe, session, order = set_up(
        bench, "reward", method={"center_weight": 0.05}, n_steps=4, batch={"per_device": 2, "accumulation": 2}
    )
    figures: list[dict[str, float]] = []
    ours = build_trainer(recipe, session, order, lambda s, n, f: figures.append(f))
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    rows = session.examples.train
    texts = {
        "chosen": [tokenizer.decode(pair.prompt_ids + pair.chosen_ids) for pair in rows],
        "rejected": [tokenizer.decode(pair.prompt_ids + pair.rejected_ids) for pair in rows],
    }
    tokenizer.pad_token_id = reward_pad_id(session.base.contract)
    seen = AllFigures()
    set_seed(recipe.seed)
    plain = RewardTrainer(
        model=load_with_head(bench.base, dtype=torch.float32),
        args=trainer_settings(recipe, session, len(order)),
        train_dataset=Dataset.from_dict(texts).select(order),
        processing_class=tokenizer,
        peft_config=reward_config(recipe.lora),
        callbacks=[seen],
    )
    first, second = weights(ours.model), weights(plain.model)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    ours.train()
    plain.train()
    assert len(figures) == len(seen.lines) == 4
    for mine, theirs in zip(figures, seen.lines, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert mine["accuracy"] == pytest.approx(theirs["accuracy"])
    for name, weight in weights(ours.model).items():
        torch.testing.assert_close(
            weight, weights(plain.model)[name], rtol=1e-3, atol=0.05 * recipe.learning_rate
        )


def test_reward_is_read_at_the_end_token_of_each_answer(bench: Bench) -> None:
    """By hand: the last hidden state of each row, alone and without padding, times the head."""
    recipe, session, order = set_up(bench, "reward", n_steps=1, batch={"per_device": 6})
    trainer = build_trainer(recipe, session, order, ignore)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    model = trainer.model.eval()
    with torch.no_grad():
        found = model(**batch).logits[:, 0]
        for i, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
            row = ids[: int(mask.sum())]
            assert int(row[-1]) in session.base.contract.eos_token_ids
            hidden = model.base_model.model.model(input_ids=row[None]).last_hidden_state[0, -1]
            assert float(found[i]) == pytest.approx(
                float(model.base_model.model.score(hidden)), rel=1e-4, abs=1e-5
            )


@pytest.mark.walk
def test_unseen_pairs_are_told_apart_after_training(bench: Bench) -> None:
    recipe, session, _ = set_up(
        bench,
        "reward",
        pairs=STYLE,
        n_steps=15,
        batch={"per_device": 4},
        learning_rate=3e-3,
        held_out_frac=0.25,
    )
    seen: list[dict[str, float]] = []
    end = train_adapter(recipe, session, lambda s, n, f: seen.append(f))
    assert len(session.examples.held_out) == 10
    assert end["held_out_accuracy"] == 1.0
    assert end["held_out_loss"] < 0.5 * end["held_out_loss_start"]
    assert seen[-1]["accuracy"] == 1.0


def _train(bench: Bench) -> None:
    bench.prefer(STYLE)
    method, data = {"kind": "reward"}, {"kind": "preferences", "name": "docs-train"}
    path = bench.recipe(
        name="taste", method=method, data=data, n_steps=4, learning_rate=3e-3, held_out_frac=0.2
    )
    finetune(path, bench.workspace)


def test_command_line_trains_shows_and_refuses_to_release_a_reward_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.root)
    _train(bench)
    registry = Registry.of(bench.workspace)
    record = registry.adapter("taste")
    assert record.kind == "reward"
    runner = CliRunner()
    shown = runner.invoke(app, ["adapter", "show", "taste"])
    assert shown.stdout.startswith(f"reward model {record.model_name}")
    assert "held_out_accuracy" in shown.stdout
    assert "no engine serves it" in shown.stdout
    assert " reward " in runner.invoke(app, ["adapter", "list"]).stdout
    with pytest.raises(BadRequest, match="is a reward model: it gives a number for a text and writes none"):
        request_override(registry, "docs", record, "because I want to see it")
    assert registry.ledger.events("release.requested") == []
    # What it stands on is found by upkeep, and none of it is missed.
    events = registry.ledger.events()
    reached = reachable(registry.store, stored(registry.store), [record.adapter, record.digest()])
    assert {a.kind for a in reached} >= {
        "adapter",
        "adapter_record",
        "reward_probes_record",
        "lineage_record",
    }
    own = [event for event in events if event.kind == "adapter.registered"]
    lost = missing(registry.store, own, stored(registry.store))
    assert [one for one in lost if "adapter" in one] == []
    # The stored rewards are those that plain transformers and PEFT give of the stored files.
    probes = registry.store.get_record(RewardProbes, record.probes)
    base = AutoModelForSequenceClassification.from_pretrained(bench.base, num_labels=1, dtype=torch.float32)
    base.config.pad_token_id = None
    model = PeftModel.from_pretrained(base, str(registry.verify(record))).eval()
    with torch.no_grad():
        found = [float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in probes.token_ids]
    assert found == pytest.approx(list(probes.rewards), rel=1e-5)
    assert RewardModel(bench.base, registry.verify(record)).rewards(probes.token_ids) == probes.rewards
    # Nor can text-writing training begin with it.
    following = bench.recipe(name="next", continue_from="taste", lora=None)
    with pytest.raises(ConfigError, match=r"continue_from: adapter taste@.* is a reward model"):
        plan(following, bench.workspace, bench.root, lambda *_: None)


def test_rewards_that_tell_nothing_apart_are_refused() -> None:
    with pytest.raises(
        TrainingFailed, match="adapter x: tells nothing apart: its rewards of the probes differ by 0"
    ):
        require_spread(RewardProbes(((1, 2), (3, 4)), (0.5, 0.5)), "adapter x")
    with pytest.raises(TrainingFailed, match="not finite"):
        require_spread(RewardProbes(((1, 2), (3, 4)), (float("nan"), 0.5)), "adapter x")


@pytest.mark.walk
def test_four_bits_learn_too(bench: Bench) -> None:
    pytest.importorskip("bitsandbytes")
    recipe, session, _ = set_up(
        bench, "reward", pairs=STYLE, n_steps=8, batch={"per_device": 4}, learning_rate=5e-3, held_out_frac=0.25,
        precision="bf16", quantization="nf4",
    )  # fmt: skip
    end = train_adapter(recipe, session, ignore)
    assert end["held_out_accuracy"] > 0.8
    (head,) = [k for k in get_peft_model_state_dict(
        PeftModel.from_pretrained(load_with_head(bench.base), str(session.adapter))
    ) if "score" in k]  # fmt: skip
    assert head.endswith("score.weight")
