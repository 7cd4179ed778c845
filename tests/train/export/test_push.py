"""An adapter on a model hub: the bytes that arrive, who may send them, and what is never sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from tests.train.export.fake_hub import TOKEN, Hub, fake_hub
from tests.train.export.support import Shop, llmops


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # speaks to servers of its own
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with fake_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_pushed_repository_has_the_exported_bytes_and_the_card(shop: Shop, hub: Hub) -> None:
    said = llmops("push", "docs", "team/docs-adapter", "--private", "--license", "apache-2.0")
    assert said.code == 0, said.error
    assert hub.repos == {"team/docs-adapter": True}
    stored = shop.registry.verify(shop.record)
    assert hub.files["adapter_model.safetensors"] == (stored / "adapter_model.safetensors").read_bytes()
    assert hub.files["tokenizer.json"] == (shop.base / "tokenizer.json").read_bytes()
    card = huggingface_hub.ModelCard(hub.files["README.md"].decode())
    assert (card.data.library_name, card.data.license) == ("peft", "apache-2.0")
    assert f"`adapter {shop.record.adapter[:12]}`" in card.text
    [event] = shop.events("adapter.pushed")
    assert (event["repo"], event["adapter"], event["commit"]) == (
        "team/docs-adapter",
        shop.record.adapter,
        "c" * 40,
    )
    assert TOKEN not in said.out + said.error


def test_a_merged_folder_is_pushed_as_it_lies_there(shop: Shop, hub: Hub, tmp_path: Path) -> None:
    assert llmops("merge", "docs", tmp_path / "merged").code == 0
    assert llmops("push", tmp_path / "merged", "team/merged").code == 0
    assert hub.files["model.safetensors"] == (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert hub.repos == {"team/merged": False}
    with (tmp_path / "merged" / "config.json").open("a") as file:
        file.write(" ")
    said = llmops("push", tmp_path / "merged", "team/merged")
    assert said.code == 4
    assert "its files are not those that were checked" in said.error


def test_a_dry_run_shows_every_file_and_sends_nothing(
    shop: Shop, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    said = llmops("push", "docs", "team/docs", "--dry-run")
    assert said.code == 0, said.error
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"):
        assert name in said.out
    assert (hub.files, hub.repos, hub.tokens) == ({}, {}, set())
    assert shop.events("adapter.pushed") == []
    assert not [p for p in shop.workspace.state.iterdir() if p.is_dir() and p.name.startswith("tmp")]


def test_push_without_a_token_or_with_a_wrong_one_says_so(
    shop: Shop, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stolen")
    said = llmops("push", "docs", "team/docs")
    assert said.code == 2
    assert "does not let this token write there (401)" in said.error
    assert "hf_stolen" not in said.error
    monkeypatch.delenv("HF_TOKEN")
    said = llmops("push", "docs", "team/docs")
    assert (said.code, said.error.partition(":")[0]) == (2, "HF_TOKEN")
    assert llmops("push", "docs", "no-owner").code == 2


def test_a_hub_that_lost_a_byte_is_found_out(shop: Shop, hub: Hub) -> None:
    hub.loses = "adapter_model.safetensors"
    said = llmops("push", "docs", "team/docs")
    assert said.code == 5
    assert "adapter_model.safetensors did not arrive as it was sent" in said.error
    assert shop.events("adapter.pushed") == []


def test_hub_that_cannot_be_reached_ends_with_5(
    shop: Shop, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # discard: nothing listens
    said = llmops("push", "docs", "team/docs")
    assert said.code == 5
    assert "push team/docs: the hub cannot be reached" in said.error
