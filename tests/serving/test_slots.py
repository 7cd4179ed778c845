"""Engines whose slots are never given back: the gateway starts another session before the last one is used."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from llmops.engines.spec import EngineSpec
from llmops.errors import BadRequest
from llmops.registry.releases import request_override
from llmops.serving.control import Control
from llmops.serving.http import Refusal
from llmops.serving.profile import load_profile
from llmops.serving.routes import Live
from tests.evidence import activate
from tests.serving.conftest import Stage, make_stage
from tests.serving.gateway import wait_for, write_profile


@pytest.fixture
def narrow(long_model: Path, peft_folders: tuple[Path, ...], tmp_path: Path) -> Stage:
    return make_stage(tmp_path, long_model, peft_folders)


@pytest.mark.walk
async def test_used_up_slots_renew_the_engine_until_champions_hold_them_all(
    narrow: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded engine under the rule of vLLM on a CPU, with room for two adapters a session."""
    monkeypatch.setattr(EngineSpec, "unload_frees_slot", property(lambda self: False))
    champion, second, third = narrow.adapters
    event, _ = request_override(narrow.registry, "docs", champion, "written for this test")
    activate(narrow.registry, event)
    live = Live()
    profile = load_profile(write_profile(narrow.workspace.root, narrow.base.path, slots=2))
    control = Control(profile, narrow.workspace, live)
    await control.start()
    try:
        first_engine = control.fleet.session.process.pid
        await control.add_adapter(second.adapter)
        assert control.fleet.session.process.pid == first_engine
        await control.add_adapter(third.adapter)
        second_engine = control.fleet.session.process.pid
        assert second_engine != first_engine
        assert live.table.resolve("docs").digest == champion.adapter
        assert live.table.resolve(third.model_name).digest == third.adapter
        assert {entry.record.adapter for entry in control.fleet.loaded} == {champion.adapter, third.adapter}
        with pytest.raises(Refusal, match="is not loaded"):
            live.table.resolve(second.model_name)

        event, _ = request_override(narrow.registry, "more", third, "written for this test")
        activated = partial(narrow.registry.ledger.events, "release.activated", after=event.seq)
        await asyncio.to_thread(wait_for, activated)
        with pytest.raises(BadRequest, match="all by champions and rollouts; raise `slots`"):
            await control.add_adapter(second.adapter)
        assert control.fleet.session.process.pid == second_engine
        assert live.table.resolve("more").digest == third.adapter
    finally:
        await control.stop()
