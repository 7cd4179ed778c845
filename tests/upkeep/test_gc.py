from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.serving.lock import announce_running, serve_lock, tell_owner
from llmops.settings import Workspace, find_workspace
from llmops.store import Store
from llmops.upkeep.collect import Request, plan_sweep
from llmops.upkeep.reach import Artifact, missing, reachable, stored
from tests.evidence import engine_of
from tests.loop import DATA, RECIPE, Loop

HOUR_S = 3600


def _age(loop: Loop, hours: float = 2) -> None:
    """Make everything that is in the store so many hours older."""
    at = time.time() - hours * HOUR_S
    for manifest in (loop.root / ".llmops/store").glob("*/*/manifest.json"):
        os.utime(manifest, (at, at))


def _store(loop: Loop) -> Store:
    return Store(loop.root / ".llmops/store")


def _orphans(loop: Loop) -> dict[str, str]:
    """Artifacts of several kinds that no event names."""
    kinds = ("adapter", "completions", "dropped", "dataset")
    return {kind: _store(loop).put_files(kind, {"f": kind.encode() * 1000}) for kind in kinds}


def _workspace(loop: Loop) -> Workspace:
    return find_workspace(loop.root)


def test_only_what_nothing_names_is_removed(loop: Loop) -> None:
    named = stored(_store(loop))
    orphans = _orphans(loop)
    _age(loop)
    planned = loop.llmops("gc", "--dry-run").out
    assert "would remove 4 artifacts" in planned
    assert stored(_store(loop)) == named | {Artifact(*orphan) for orphan in orphans.items()}
    done = loop.llmops("gc").out
    for kind, digest in orphans.items():
        assert any(line.split()[:2] == [kind, digest[:12]] for line in done.splitlines()), done
    assert stored(_store(loop)) == named
    for artifact in named:
        _store(loop).verify(*artifact)
    last = json.loads(loop.llmops("ledger", "log", "--json", "--kind", "store").out.splitlines()[-1])
    sizes = sum(1000 * len(kind) for kind in orphans)
    assert last["body"]["n_artifacts"] == 4
    assert sizes < last["body"]["n_bytes"] < sizes + 4 * 400  # with their manifests
    assert "chain whole" in loop.llmops("ledger", "verify").out
    assert "removed 0 artifacts" in loop.llmops("gc").out


def test_every_kind_of_evidence_is_reached(loop: Loop) -> None:
    kinds = {artifact.kind for artifact in stored(_store(loop))}
    assert kinds == {
        "adapter", "adapter_record", "campaign_record", "completions", "decision_record", "items",
        "lineage_files", "lineage_record", "probes_record", "prompt_contract_record", "release_record",
        "report_record",
    }  # fmt: skip
    _age(loop)
    assert "removed 0 artifacts" in loop.llmops("gc").out


def test_young_artifacts_wait_for_their_writer(loop: Loop) -> None:
    old, young = _store(loop).put_files("x", {"f": b"old"}), b"young"
    _age(loop)
    digest = _store(loop).put_files("x", {"f": young})
    out = loop.llmops("gc").out
    assert "kept 1 that nothing names yet" in out
    assert _store(loop).digests("x") == [digest]
    assert old != digest
    _age(loop, 0.9)
    assert _store(loop).put_files("x", {"f": young}) == digest  # stored again: young again
    assert "removed 0" in loop.llmops("gc", "--older-than", "0.5").out
    assert "removed 1" in loop.llmops("gc", "--older-than", "0").out


def test_artifact_named_between_plan_and_removal_stays(loop: Loop) -> None:
    from llmops.upkeep.collect import carry_out

    digest = _store(loop).put_files("x", {"f": b"late"})
    _age(loop)
    workspace, request = _workspace(loop), Request()
    sweep = plan_sweep(workspace, request)
    assert [artifact.digest for artifact, _ in sweep.artifacts] == [digest]
    Registry.of(workspace).ledger.append("run.started", {"run": digest})
    assert carry_out(workspace, sweep, request).artifacts == ()
    assert _store(loop).has("x", digest)


def test_what_an_engine_holds_stays(loop: Loop) -> None:
    orphans = _orphans(loop)
    _age(loop)
    sweep = plan_sweep(_workspace(loop), Request(in_use=frozenset({orphans["adapter"]})))
    assert {a.kind for a, _ in sweep.artifacts} == {"completions", "dropped", "dataset"}


def test_silent_gateway_keeps_every_adapter(loop: Loop, tiny_model: Path) -> None:
    orphans = _orphans(loop)
    _age(loop)
    workspace = _workspace(loop)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # a port nobody answers on
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with serve_lock(workspace) as lock:
            tell_owner(lock, url)
            announce_running(workspace, url, engine_of(resolve_base(str(tiny_model))))
            out = loop.llmops("gc").out
    assert f"adapters stay: the gateway at {url} does not say" in out
    assert "removed 3 artifacts" in out
    assert _store(loop).has("adapter", orphans["adapter"])
    assert "removed 1 artifacts" in loop.llmops("gc").out


# ------------------------------------------------------------ refused


def test_cut_off_ledger_is_no_reason_to_remove_its_evidence(loop: Loop) -> None:
    _age(loop)
    before = stored(_store(loop))
    with sqlite3.connect(loop.root / ".llmops/llmops.db") as connection:
        connection.execute("DELETE FROM events WHERE seq > 1")
    done = loop.llmops("gc", check=False)
    assert (done.code, "the tail was deleted" in done.err) == (4, True)
    assert stored(_store(loop)) == before


def test_foreign_database_is_no_reason_to_empty_the_store(loop: Loop, tmp_path: Path) -> None:
    _age(loop)
    before = stored(_store(loop))
    for release in (loop.root / ".llmops/store/release_record").iterdir():  # no anchor tells
        release.rename(tmp_path / "release")
    env = {"LLMOPS_DATABASE_URL": f"sqlite:///{tmp_path}/other.db"}
    done = loop.llmops("gc", check=False, **env)
    assert done.code == 2
    assert "names nothing of the" in done.err
    assert len(stored(_store(loop))) == len(before) - 1


def test_unreadable_record_stops_the_sweep(loop: Loop) -> None:
    (record,) = (loop.root / ".llmops/store/decision_record").iterdir()
    (record / "record.json").chmod(0o644)
    (record / "record.json").write_text("{")
    orphans = _orphans(loop)
    _age(loop)
    done = loop.llmops("gc", check=False)
    assert (done.code, "decision_record" in done.err) == (4, True)
    assert _store(loop).has("adapter", orphans["adapter"])


def test_shared_store_needs_the_shared_ledger(loop: Loop, tmp_path: Path) -> None:
    done = loop.llmops("gc", check=False, LLMOPS_STORE_URL=f"file://{tmp_path}/shared")
    assert done.code == 2
    assert "other ledgers may name what lies there" in done.err


def test_what_is_named_and_lost_is_said(loop: Loop) -> None:
    registry = Registry.of(_workspace(loop))
    store, events = registry.store, registry.ledger.events()
    seeds = {str(value) for event in events for value in event.body.values()}
    assert missing(store, events, reachable(store, stored(store), seeds)) == []
    lost = {kind: store.digests(kind)[0] for kind in ("adapter", "completions", "items", "probes_record")}
    for artifact in lost.items():
        store.remove(*artifact)
    said = missing(store, events, reachable(store, stored(store), seeds))
    assert sorted(line.split(",")[0] for line in said) == sorted(f"{k} {d[:12]}" for k, d in lost.items())


# ------------------------------------------------------------ killed processes


def _start_training(loop: Loop, base: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Fine-tune on rows of a file, until the first step is done; the process and the run's folder."""
    loop.write_rows(40)
    values = {"r": 8, "alpha": 16, "n_steps": 100_000, "learning_rate": "1e-5", "seed": 0, "tracking": "none"}
    path = loop.write("train.yaml", RECIPE, base=base, **values)
    path.write_text(
        path.read_text().replace("{kind: dataset, name: docs}", "{kind: files, paths: [rows.jsonl]}")
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "llmops.cli", "finetune", "train.yaml"],
        cwd=loop.root, env=loop.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (steps := list(loop.root.glob(".llmops/runs/*/metrics.jsonl"))) or not steps[0].stat().st_size:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return child, steps[0].parent


@pytest.mark.walk
def test_killed_training_is_told_from_one_that_runs(loop: Loop, tiny_model: Path) -> None:
    child, folder = _start_training(loop, tiny_model)
    try:
        (folder / "trainer").mkdir(exist_ok=True)
        (folder / "trainer/checkpoint").write_bytes(b"x" * 5000)
        _age(loop)
        running = loop.llmops("gc", "--older-than", "0").out
        assert f"run {folder.name} has not ended" in running
        assert (folder / "trainer/checkpoint").is_file()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert f"unfinished {folder.name}" in loop.llmops("status").out
    assert "would remove" in loop.llmops("gc", "--dry-run", "--older-than", "0").out
    dead = loop.llmops("gc", "--older-than", "0").out
    assert f"run {folder.name} is dead" in dead
    assert not (folder / "trainer").exists()
    assert (folder / "metrics.jsonl").stat().st_size
    assert "unfinished" not in loop.llmops("status").out
    newest = json.loads(loop.llmops("ledger", "log", "--json", "--kind", "run").out.splitlines()[-1])
    assert (newest["kind"], newest["body"]) == ("run.failed", {"run": folder.name, "error": "Killed"})


def test_rows_of_a_run_in_progress_stay_however_old_they_look(loop: Loop) -> None:
    registry = Registry.of(_workspace(loop))
    registry.ledger.append("run.started", {"run": "on-another-machine"})
    digest = registry.store.put_files("dataset", {"train.jsonl": b"{}"})
    out = loop.llmops("gc", "--older-than", "0").out
    assert "run on-another-machine has not ended" in out
    assert registry.store.has("dataset", digest)
    registry.ledger.append("run.failed", {"run": "on-another-machine", "error": "Killed"})
    assert "removed 1 artifacts" in loop.llmops("gc", "--older-than", "0").out


def test_staging_of_a_killed_writer_is_removed_once_it_is_old(loop: Loop) -> None:
    stage = loop.root / ".llmops/store/.staging/0123"
    (stage / "sub").mkdir(parents=True)
    (stage / "sub/weights").write_bytes(b"x" * 4096)
    os.utime(stage / "sub/weights", (0, 0))  # a copied file keeps its time: that says nothing
    os.utime(stage, (0, 0))
    assert "and 0 leftovers" in loop.llmops("gc").out
    out = loop.llmops("gc", "--older-than", "0").out
    assert "and 1 leftovers, 4.0 KiB" in out
    assert not stage.exists()


def test_data_build_and_gc_leave_each_other_alone(loop: Loop) -> None:
    loop.write("data.yaml", DATA)
    loop.write_rows(60)
    loop.llmops("data", "build", "data.yaml")
    _age(loop)
    assert "removed 0 artifacts" in loop.llmops("gc").out
    assert "dataset docs@" in loop.llmops("data", "show", "docs").out
