"""From rows to a promoted name through the command line, on each backend; and what a second workspace sees of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.loop import ANSWERS, DATA, GATE, NAME, PROFILE, RECIPE, SUITE
from tests.storage.backends import BackedLoop, Backend
from tests.tiny import build_tiny_model

pytestmark = [pytest.mark.walk, pytest.mark.timeout(900)]


@pytest.fixture
def loop(
    tmp_path: Path, backend: Backend, clean_env: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackedLoop]:
    """A workspace on the backend, with data built, an adapter trained and an endpoint running."""
    loop = BackedLoop(tmp_path, tmp_path_factory.mktemp("cache"), backend.env)
    base = build_tiny_model(tmp_path / "base", max_len=512)
    (tmp_path / "llmops.yaml").write_text("name: walk\n")
    loop.write_rows()
    loop.write("data.yaml", DATA)
    loop.write(
        "recipe.yaml", RECIPE, base=base, r=16, alpha=32, learning_rate="1e-2", tracking="none", n_steps=60, seed=0
    )  # fmt: skip
    loop.write("serve.yaml", PROFILE, base=base)
    loop.write("suite.yaml", SUITE, n_cases=24)
    loop.write("gate.yaml", GATE, kind="superior", bound="by: 0")
    loop.llmops("data", "build", "data.yaml")
    loop.llmops("finetune", "recipe.yaml")
    loop.llmops("serve", "serve.yaml", "--detach")
    try:
        yield loop
    finally:
        loop.llmops("stop")


def test_rows_become_a_promoted_name(
    loop: BackedLoop, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (adapter,) = re.findall(r"docs@[0-9a-f]{12}", loop.llmops("adapter", "list").out)
    loop.llmops("eval", "suite.yaml", "--gate", "gate.yaml")
    assert loop.llmops("gate", "check", "gate.yaml").out.splitlines()[-1].startswith("PASS  docs: ")
    assert f"docs -> {adapter}" in loop.llmops("release", "promote", NAME).out
    assert loop.chat(NAME, "add 7")[0]["choices"][0]["message"]["content"] in ANSWERS
    assert loop.answered_by(NAME, "add 7") == adapter[5:]
    said = loop.llmops("ledger", "verify").out
    assert "chain whole, 1 anchors outside the database agree" in said
    if backend.shared:
        assert not (loop.root / ".llmops/llmops.db").exists()
        other = replace(loop, root=tmp_path_factory.mktemp("other"))
        _see_from_another_workspace(loop, other, adapter, said)
        return
    backend.execute("DELETE FROM events WHERE kind LIKE 'release.%' OR kind LIKE 'serve.%'")
    assert loop.llmops("ledger", "verify", check=False).code == 4


def _see_from_another_workspace(loop: BackedLoop, other: BackedLoop, adapter: str, said: str) -> None:
    """The same ledger and artifacts: it follows the first, from files of the bucket, and leads when that ends."""
    (other.root / "llmops.yaml").write_text("name: other\n")
    other.write("serve.yaml", PROFILE, base=loop.root / "base")
    assert other.llmops("ledger", "verify").out == said
    assert adapter in other.llmops("adapter", "list").out
    other.llmops("serve", "serve.yaml", "--detach")
    try:
        assert sorted(gateway["leads"] for gateway in _status(other)["gateways"]) == [False, True]
        _require_served(other, adapter)
        (fetched,) = (other.root / ".llmops/store/adapter").iterdir()
        assert fetched.name.startswith(adapter[5:])
        loop.llmops("stop")
        deadline = time.monotonic() + 30
        while [gateway["leads"] for gateway in _status(other)["gateways"]] != [True]:
            assert time.monotonic() < deadline, "nobody leads"
            time.sleep(0.25)
        _require_served(other, adapter)
        assert _status(other)["names"][0]["champion"] == adapter
    finally:
        other.llmops("stop")


def _require_served(loop: BackedLoop, adapter: str) -> None:
    answer, headers = loop.chat(NAME, "list 3")
    assert answer["choices"][0]["message"]["content"] in ANSWERS
    assert headers["x-llmops-model"].startswith(adapter[5:])


def _status(loop: BackedLoop) -> dict[str, Any]:
    return dict(json.loads(loop.llmops("status", "--json").out))
