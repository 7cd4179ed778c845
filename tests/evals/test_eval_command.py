"""`llmops eval` as it is typed: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import pytest

from tests.evals.conftest import Room, right
from tests.in_process import llmops


@pytest.mark.parametrize("named", [(), ("run",)], ids=["by default", "by name"])
def test_suite_is_run_whether_or_not_the_command_is_named(room: Room, named: tuple[str, ...]) -> None:
    counterpart = room.serve(lambda model, prompt, nth: right(prompt))
    suite = room.suite().name
    done = llmops(room.workspace.root, "eval", *named, "--endpoint", counterpart.url, suite)
    assert done.code == 0, done.err
    assert "100.0 [" in done.out
    assert len(room.registry.ledger.events("report.stored")) == 2


def test_help_names_the_commands(room: Room) -> None:
    done = llmops(room.workspace.root, "eval", "--help")
    assert done.code == 0
    assert "`llmops eval SUITE`" in done.out
