"""Who approves once there are keys: the holder of one, and not whoever says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmops.auth import Keys, NewKey
from llmops.engines.spec import EngineSpec, signature
from llmops.registry.adapters import Registry
from llmops.registry.approvals import approvals_of
from tests.in_process import llmops
from tests.registry.consent import decide_with
from tests.serving.staged import VERSION, make_workspace


def test_with_keys_nobody_approves_in_another_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, base, (adapter,) = make_workspace(tmp_path, 1)
    registry, keys = Registry.of(workspace), Keys.of(workspace)
    engine = signature(EngineSpec("transformers", base.path, base.model_name, base.digest), VERSION)
    decision = decide_with(registry, adapter, engine, 3).digest()
    assert llmops(tmp_path, "approve", "docs", "--as", "eve").code == 0  # taken at its word
    tokens = {
        name: str(keys.create(NewKey(name, role)).token)
        for name, role in (("ann", "operator"), ("ben", "admin"), ("app", "client"))
    }
    for token in ("", "llmops-x", tokens["app"]):
        monkeypatch.setenv("LLMOPS_API_KEY", token)
        refused = llmops(tmp_path, "approve", "docs", "--as", "ann")
        assert (refused.code, "needs an operator's key" in refused.err) == (2, True)
    monkeypatch.setenv("LLMOPS_API_KEY", tokens["ann"])
    refused = llmops(tmp_path, "approve", "docs", "--as", "ben")
    assert (refused.code, "'ben' does not hold the key, 'ann' does" in refused.err) == (2, True)
    assert llmops(tmp_path, "approve", "docs").code == 0
    monkeypatch.setenv("LLMOPS_API_KEY", tokens["ben"])
    assert llmops(tmp_path, "approve", "docs", "--as", "ben").code == 0
    assert {approval.approver for approval in approvals_of(registry, decision)} == {"eve", "ann", "ben"}
