"""Model cards: every claim is what a record says, and a card that says otherwise is found out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from llmops.card import render_card
from llmops.records import Decision, MetricResult, Report
from llmops.registry.adapters import NewAdapter, Registry
from llmops.registry.bases import resolve_base
from llmops.schema import digest_of
from llmops.settings import Workspace
from tests.evidence import LINEAGE, NO_PROBES
from tests.registry.chain import Chain, make_chain
from tests.train.export.support import Said, llmops


@pytest.fixture
def chain(
    workspace: Workspace, tiny_model: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> Chain:
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(workspace.root))
    return make_chain(workspace, tiny_model, tiny_adapter)


def _check(root: Path, text: str) -> Said:
    (root / "card.md").write_text(text)
    return llmops("card", "--check", root / "card.md")


def test_card_tells_data_scores_verdict_and_release_each_with_its_digest(
    chain: Chain, tmp_path: Path
) -> None:
    said = llmops("card", chain.first, tmp_path / "card.md")
    assert said.code == 0, said.error
    text = (tmp_path / "card.md").read_text()
    assert f"- Licence of the data: CC0-1.0 (`dataset {chain.dataset[:12]}`)" in text
    assert f"- Rows in pool train: 12 (`dataset {chain.dataset[:12]}`)" in text
    report = chain.registry.store.get_record(Report, chain.first_report)
    assert report.metrics["rougeL"] == MetricResult(27.0, 24.0, 30.0, 0.9, "sig")
    assert re.search(
        rf"- rougeL 27 \[24, 30\] at 90%, suite s, 1 cases .*`report {chain.first_report[:12]}`", text
    )
    assert re.search(rf"against the base, .*: PASS \(`decision {chain.first_decision[:12]}`\)", text)
    assert "difference +12.2 [+9.7, +14.7] at 95% over 1 cases: PASS" in text
    assert f"(`release {chain.first_release[:12]}`)" in text
    for digest in (chain.first, chain.base, chain.dataset, chain.first_report, chain.first_decision):
        assert f"| `{digest}` |" in text


def test_card_shows_the_newest_decision_and_the_preferences_behind_a_second_round(chain: Chain) -> None:
    text = llmops("card", chain.second).out
    decision = chain.registry.store.get_record(Decision, chain.decision)
    assert decision.ratings is not None
    assert f"(`decision {chain.decision[:12]}`)" in text
    assert f"decision {chain.early_decision[:12]}" not in text
    assert f"- Counted {decision.ratings.n_votes} votes of {decision.ratings.n_raters} people" in text
    assert f"(`preferences {chain.preferences[:12]}`)" in text


def test_a_true_card_holds_also_after_newer_evidence_and_with_words_of_its_owner(
    chain: Chain, tmp_path: Path
) -> None:
    old = render_card(chain.registry, chain.registry.adapter(chain.second))
    early = chain.registry.store.get_record(Decision, chain.early_decision)
    chain.registry.ledger.append(
        "decision.made",
        {
            "decision": chain.early_decision,
            "public_name": "docs",
            "verdict": early.verdict,
            "candidate": chain.second,
        },
    )
    said = _check(tmp_path, old.replace("## Data", "Made with love.\n\n## Data"))
    assert said.code == 0, said.error
    assert re.search(r"card of docs@\w{12}: \d+ claims hold", said.out)


@pytest.mark.parametrize(
    ("pattern", "lie"),
    [
        (r"rougeL 27 ", "rougeL 29 "),
        (r": PASS \(", ": FAIL ("),
        (r"Licence of the data: CC0-1.0", "Licence of the data: MIT"),
        (r"`report \w{12}`", "`report 0123456789ab`"),
        (r"`report \w{12}`", "`report unknown`"),
        (r"\| report \| `\w{4}", "| report | `0000"),
        (r"library_name: peft", "library_name: diffusers"),
        (r"- Belongs to base model .*\n", ""),
    ],
)
def test_a_changed_card_is_found_out(chain: Chain, tmp_path: Path, pattern: str, lie: str) -> None:
    true = render_card(chain.registry, chain.registry.adapter(chain.first))
    text, n = re.subn(pattern, lie, true, count=1)
    assert n == 1
    said = _check(tmp_path, text)
    assert said.code == 4, said.out
    assert "write the card again" in said.error


def test_a_card_whose_record_was_altered_no_longer_holds(chain: Chain, tmp_path: Path) -> None:
    true = render_card(chain.registry, chain.registry.adapter(chain.first))
    path = chain.registry.store.path("report_record", chain.first_report) / "record.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("27.0", "28.0"))
    assert _check(tmp_path, true).code == 4


def test_what_is_no_card_is_a_bad_request(chain: Chain, tmp_path: Path) -> None:
    assert _check(tmp_path, "# A model\n").code == 2
    assert llmops("card", "--check", tmp_path / "none.md").code == 2
    assert llmops("card").code == 2


@pytest.fixture
def trained(workspace: Workspace, tiny_model: Path, tiny_adapter: Path) -> tuple[Registry, str]:
    """An adapter with a recipe, figures and files beside its lineage, as training leaves them."""
    from dataclasses import replace

    registry, base = Registry.of(workspace), resolve_base(str(tiny_model))
    recipe = {
        "name": "docs",
        "method": {"kind": "sft"},
        "learning_rate": 1e-05,
        "base_model": "owner/name@abcdef0",
    }
    lineage = replace(
        LINEAGE, origin="trained", recipe=recipe, recipe_digest=digest_of(recipe), seeds={"adapter": 3},
        n_rows={"trained": 6, "dropped": 3}, metrics={"train_loss": 1.5}, packages={"torch": "2.13.0", "zip": "1"},
        hardware={"device": "cpu"}, git_sha="ab" * 20,
    )  # fmt: skip
    lines = [{"source": f"rows.jsonl:{i}", "reason": f"has {600 + i} tokens, over 512"} for i in range(3)]
    extras = {
        "dropped.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode(),
        "quality.json": json.dumps({"rows": 9, "duplicates": {"exact": 2, "near": 1}, "note": "x"}).encode(),
    }
    hub_base = replace(base, ref="owner/name@abcdef0")
    new = NewAdapter("docs", tiny_adapter, hub_base, base.contract, NO_PROBES, lineage, extras)
    return registry, registry.register(new).adapter


def test_training_is_told_with_its_recipe_and_what_became_of_the_rows(
    trained: tuple[Registry, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, adapter = trained
    monkeypatch.setattr("llmops.card.origin.resolve_base", _not_here)
    monkeypatch.setenv("LLMOPS_WORKSPACE", str(tmp_path))
    text = llmops("card", adapter).out
    assert "- Rows dropped before training, has N tokens, over N: 3 (`run files " in text
    assert "- Quality check, duplicates.near: 1 (`run files " in text
    for said in (
        "train_loss: 1.5",
        "Seeds: adapter 3",
        "Packages: torch 2.13.0 (2 in all",
        f"commit {'ab' * 6}",
    ):
        assert said in text
    recipe = registry.lineage(registry.adapter(adapter)).recipe
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    assert yaml.safe_load(block[1]) == recipe
    assert _check(tmp_path, text).code == 0
    assert _check(tmp_path, text.replace("1.0e-05", "2.0e-05")).code == 4


def test_front_matter_is_what_the_hub_reads(
    trained: tuple[Registry, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, adapter = trained
    monkeypatch.setattr("llmops.card.origin.resolve_base", _not_here)
    record = registry.adapter(adapter)
    data = huggingface_hub.ModelCard(render_card(registry, record, licence="mit")).data
    assert (data.base_model, data.library_name, data.license) == ("owner/name", "peft", "mit")
    assert (data.base_model_relation, data.tags) == ("adapter", ["lora", "llmops"])
    merged = huggingface_hub.ModelCard(render_card(registry, record, "safetensors")).data
    assert (merged.base_model_relation, merged.license) == ("merge", None)


def test_licence_of_the_base_is_claimed_only_where_its_own_card_states_it(
    workspace: Workspace, tiny_model: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    import hashlib
    import shutil

    base_dir = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    base = resolve_base(str(base_dir))
    registry = Registry.of(workspace)
    record = registry.register(NewAdapter("docs", tiny_adapter, base, base.contract, NO_PROBES, LINEAGE, {}))
    assert "own card" not in render_card(registry, record)
    (base_dir / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    digest = hashlib.sha256((base_dir / "README.md").read_bytes()).hexdigest()
    assert f"states its licence: apache-2.0 (`base card {digest[:12]}`)" in render_card(registry, record)


def _not_here(ref: str) -> None:
    from llmops.errors import CouldNotRun

    raise CouldNotRun(f"{ref} is not on this machine")
