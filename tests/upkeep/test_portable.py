from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.loop import Loop
from tests.storage.backends import Bucket
from tests.storage.conftest import bucket, database, postgres_uri, s3_env, s3_url

__all__ = ["bucket", "database", "postgres_uri", "s3_env", "s3_url"]


def _lines(loop: Loop, *arguments: str, **env: str) -> list[str]:
    return loop.llmops(*arguments, **env).out.splitlines()


def test_workspace_moves_from_a_laptop_to_shared_servers_and_back(
    loop: Loop, tmp_path: Path, database: str, s3_env: dict[str, str], bucket: Bucket
) -> None:
    events, adapters = _lines(loop, "ledger", "log", "--json"), _lines(loop, "adapter", "list")
    shared = {"LLMOPS_DATABASE_URL": database, **s3_env}
    loop.llmops("backup", "../laptop.tar")
    assert (
        f"{len(events)} events, 3 ratings" in loop.llmops("restore", "../laptop.tar", "../team", **shared).out
    )
    team = Loop(tmp_path / "team", loop.cache)
    assert list((team.root / ".llmops").glob("llmops.db*")) == []
    # Another machine has none of the files, and sees all of it.
    shutil.rmtree(team.root / ".llmops/store")
    assert _lines(team, "ledger", "log", "--json", **shared)[:-1] == events
    assert _lines(team, "adapter", "list", **shared) == adapters
    assert "chain whole" in team.llmops("ledger", "verify", **shared).out
    n_keys = len(bucket.keys())
    bucket.write("team/llmops/dropped/" + "e" * 64 + "/manifest.json", b"{}")
    assert "removed 0 artifacts" in team.llmops("gc", **shared).out  # young
    assert "removed 1 artifacts" in team.llmops("gc", "--older-than", "0", **shared).out
    assert len(bucket.keys()) == n_keys
    team.llmops("backup", "../team.tar.gz", **shared)
    team.llmops("restore", "../team.tar.gz", "../back")
    back = Loop(tmp_path / "back", loop.cache)
    kinds = [json.loads(line)["kind"] for line in _lines(back, "ledger", "log", "--json")]
    assert kinds[len(events) :] == ["backup.restored", "store.collected", "backup.restored"]
    assert _lines(back, "adapter", "list") == adapters
    assert "chain whole" in back.llmops("ledger", "verify").out


def test_database_that_holds_something_is_left_alone(loop: Loop, tmp_path: Path, database: str) -> None:
    loop.llmops("backup", "../a.tar")
    loop.llmops("restore", "../a.tar", "../b", LLMOPS_DATABASE_URL=database)
    before = _lines(Loop(tmp_path / "b", loop.cache), "ledger", "log", "--json", LLMOPS_DATABASE_URL=database)
    done = loop.llmops("restore", "../a.tar", "../c", check=False, LLMOPS_DATABASE_URL=database)
    assert (done.code, "holds" in done.err and "already" in done.err) == (2, True)
    assert "password" not in done.err
    assert not (tmp_path / "c").exists()
    after = _lines(Loop(tmp_path / "b", loop.cache), "ledger", "log", "--json", LLMOPS_DATABASE_URL=database)
    assert after == before
