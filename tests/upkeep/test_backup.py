from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from llmops.errors import LlmopsError
from llmops.registry.adapters import Registry
from llmops.settings import find_workspace
from llmops.store import Store
from llmops.upkeep.backup import back_up
from llmops.upkeep.reach import stored
from llmops.upkeep.restore import restore
from tests.loop import Loop
from tests.upkeep.evidence import make_loop

WRITER = """
import sys
from pathlib import Path
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import find_campaign, open_campaign, put_items
from llmops.records import Item, Message
from llmops.registry.adapters import Registry
from llmops.settings import find_workspace
from dataclasses import replace
registry = Registry.of(find_workspace(Path(sys.argv[1])))
campaign = find_campaign(registry.store, registry.ledger, "docs-train")
for n in range(10_000):
    items = [Item((Message("user", f"{n} {i}"),), ("a", "b"), "g", "f:1") for i in range(5)]
    one = replace(campaign, name=f"c{n}", items=put_items(registry.store, items), n_items=5)
    open_campaign(registry.store, registry.ledger, one)
    book = RatingBook(registry.store, registry.ledger, one)
    while (showing := book.next("bob")) is not None:
        book.rate(showing.id, "right")
        print(n, flush=True)
"""


def _again(loop: Loop, root: Path) -> Loop:
    return Loop(root, loop.cache)


def _events(loop: Loop) -> list[str]:
    return loop.llmops("ledger", "log", "--json").out.splitlines()


def _fill(loop: Loop) -> Loop:
    """Everything else a backup holds: data files, a run, and MLflow's database; and what it does not."""
    for name in ("data/docs.yaml", "data/rows.jsonl", "evals/gates/docs.yaml", "serving/app.py"):
        (loop.root / name).parent.mkdir(parents=True, exist_ok=True)
        (loop.root / name).write_text(f"# {name}\n")
    for name in ("data/built/large.jsonl", "serving/__pycache__/app.pyc", ".llmops/runs/r1/trainer/state"):
        (loop.root / name).parent.mkdir(parents=True, exist_ok=True)
        (loop.root / name).write_text("not for keeping")
    (loop.root / ".llmops/runs/r1/metrics.jsonl").write_text('{"step": 1}\n')
    with sqlite3.connect(loop.root / ".llmops/mlflow.db") as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
        connection.execute("INSERT INTO runs VALUES ('r1')")
    return loop


@pytest.fixture
def full(loop: Loop) -> Loop:
    """The workspace, filled."""
    return _fill(loop)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_adapter: Path) -> dict[str, bytes]:
    """A backup of it by suffix, taken once: for tests that damage copies of it."""
    folder = tmp_path_factory.mktemp("taken")
    loop = _fill(make_loop(folder, tiny_model, tiny_adapter))
    for suffix in (".tar", ".tar.gz"):
        back_up(find_workspace(loop.root), folder / f"a{suffix}")
    return {suffix: (folder / f"a{suffix}").read_bytes() for suffix in (".tar", ".tar.gz")}


@pytest.fixture
def file(tmp_path: Path, taken: dict[str, bytes]) -> Path:
    """A copy of the backup."""
    path = tmp_path / "a.tar"
    path.write_bytes(taken[".tar"])
    return path


# ------------------------------------------------------------ there and back


@pytest.mark.walk
def test_deleted_workspace_comes_back_elsewhere_as_it_was(full: Loop, tmp_path: Path) -> None:
    adapters, releases, events = (
        full.llmops("adapter", "list").out,
        full.llmops("release", "list").out,
        _events(full),
    )
    artifacts = stored(Store(full.root / ".llmops/store"))
    file = tmp_path / "kept.tar.gz"
    out = full.llmops("backup", str(file)).out
    assert f"{len(events)} events, 3 ratings, {len(artifacts)} artifacts" in out
    digest = next(line.split()[1] for line in out.splitlines() if line.startswith("digest "))
    assert file.stat().st_mode & 0o077 == 0  # prompts and names are in it
    shutil.rmtree(full.root)
    again = _again(full, tmp_path / "deep/er/again")
    done = Loop(tmp_path, full.cache).llmops("restore", str(file), "deep/er/again").out
    assert f"{len(events)} events, 3 ratings and {len(artifacts)} artifacts" in done
    assert again.llmops("adapter", "list").out == adapters
    assert again.llmops("release", "list").out == releases
    assert _events(again)[:-1] == events
    newest = json.loads(_events(again)[-1])
    assert newest["kind"] == "backup.restored"
    assert newest["body"] == {"backup": digest, "n_events": len(events)}
    assert "chain whole" in again.llmops("ledger", "verify").out
    assert "BROKEN" not in again.llmops("status").out
    assert stored(Store(again.root / ".llmops/store")) == artifacts
    assert "removed 0 artifacts" in again.llmops("gc", "--older-than", "0").out
    with sqlite3.connect(again.root / ".llmops/mlflow.db") as connection:
        assert connection.execute("SELECT name FROM runs").fetchall() == [("r1",)]
    kept = {p.relative_to(again.root).as_posix() for p in again.root.rglob("*") if p.is_file()}
    assert kept >= {
        "llmops.yaml", "recipes/docs.yaml", "data/docs.yaml", "data/rows.jsonl", "evals/gates/docs.yaml",
        "serving/app.py", ".llmops/runs/r1/metrics.jsonl",
    }  # fmt: skip
    assert not [name for name in kept if "built" in name or "pycache" in name or "trainer" in name]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_backup_of_an_empty_workspace_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "ws"
    root.mkdir()
    (root / "llmops.yaml").write_text("name: empty\n")
    loop = Loop(root, tmp_path / "cache")
    assert "0 events, 0 ratings, 0 artifacts" in loop.llmops("backup", "../b.tar").out
    loop.llmops("restore", "../b.tar", "../again")
    assert "1 events" in Loop(tmp_path / "again", loop.cache).llmops("ledger", "verify").out


def test_restored_workspace_goes_on(file: Path, tmp_path: Path) -> None:
    restore(file, tmp_path / "b")
    back_up(find_workspace(tmp_path / "b"), tmp_path / "b.tar")
    restore(tmp_path / "b.tar", tmp_path / "c")
    ledger = Registry.of(find_workspace(tmp_path / "c")).ledger
    assert [e.kind for e in ledger.events()][-2:] == ["backup.restored", "backup.restored"]


def test_backup_taken_while_people_rate_is_whole(full: Loop, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(full.root)], stdout=subprocess.PIPE, env=full.environment()
    )
    assert child.stdout is not None
    try:
        child.stdout.readline()
        for n in range(3):
            full.llmops("backup", f"../{n}.tar")
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
    n_ratings = []
    for n in range(3):
        out = full.llmops("restore", f"../{n}.tar", f"../r{n}").out
        n_ratings.append(int(out.split(" events, ")[1].split(" ")[0]))
        assert "chain whole" in _again(full, tmp_path / f"r{n}").llmops("ledger", "verify").out
    assert 3 < n_ratings[0] <= n_ratings[1] <= n_ratings[2]


def test_artifact_that_nothing_names_stays_behind(full: Loop, tmp_path: Path) -> None:
    digest = Store(full.root / ".llmops/store").put_files("dropped", {"f": b"x"})
    back_up(find_workspace(full.root), tmp_path / "a.tar")
    restore(tmp_path / "a.tar", tmp_path / "b")
    assert not Store(tmp_path / "b/.llmops/store").has("dropped", digest)


# ------------------------------------------------------------ damaged backups


def _refused(file: Path, *words: str, code: int = 4) -> None:
    root = file.parent / "again"
    before = sorted(file.parent.iterdir())
    with pytest.raises(LlmopsError) as caught:
        restore(file, root)
    assert caught.value.exit_code == code, caught.value
    for word in words:
        assert word in str(caught.value)
    assert sorted(file.parent.iterdir()) == before


def test_damaged_backup_ends_the_command_with_exit_4(tmp_path: Path, file: Path) -> None:
    info = next(m for m in _members(file) if m.name == "database/events.jsonl")
    _flip(file, info.offset_data + 40)
    done = Loop(tmp_path, tmp_path / "cache").llmops("restore", "a.tar", "again", check=False)
    assert done.code == 4
    assert done.err.splitlines()[-1] == (
        "error: a.tar: database/events.jsonl was changed; take another backup"
    )
    assert not (tmp_path / "again").exists()


def _flip(file: Path, at: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def _members(file: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(file) as tar:
        return tar.getmembers()


def _pack(file: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(file, "w") as tar:
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return file


def _unpack(file: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(file) as tar:
        return [(info, (tar.extractfile(info) or io.BytesIO()).read()) for info in tar.getmembers()]


@pytest.mark.parametrize(
    "name",
    [
        "database/events.jsonl",
        "database/ratings.jsonl",
        "adapter_model.safetensors",
        "llmops.yaml",
        "manifest-",
    ],
)
def test_flipped_byte_is_refused_by_its_members_name(file: Path, name: str) -> None:
    info = next(m for m in _members(file) if name in m.name)
    _flip(file, info.offset_data + info.size // 2)
    _refused(file, info.name, "was changed")


def test_no_flipped_byte_anywhere_changes_what_is_restored(tmp_path: Path, taken: dict[str, bytes]) -> None:
    """Each of many flips is refused with exit code 4, or met padding: then everything is as it was."""
    places, n_refused, expected = random.Random(0), 0, None
    for n, suffix in enumerate([None, *[".tar.gz"] * 20, *[".tar"] * 40]):
        source, root = tmp_path / f"{n}{suffix or '.tar'}", tmp_path / f"r{n}"
        source.write_bytes(taken[suffix or ".tar"])
        if suffix:
            _flip(source, places.randrange(source.stat().st_size), places.randrange(8))
        try:
            restore(source, root)
        except LlmopsError as error:
            n_refused += error.exit_code == 4
            assert not root.exists()
        else:
            expected = expected or _contents(root)
            assert _contents(root) == expected
            shutil.rmtree(root)
    assert n_refused > 30


def _contents(root: Path) -> dict[str, bytes]:
    """All files but the database, which has the time of the restoration; its tables but that event."""
    files = {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in root.rglob("*") if p.is_file() and not p.name.startswith("llmops.db")
    }  # fmt: skip
    with sqlite3.connect(root / ".llmops/llmops.db") as connection:
        for table in ("events", "showings", "ratings"):
            rows = connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
            files[table] = repr(rows[: -1 if table == "events" else None]).encode()
    return files


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97])
def test_cut_off_backup_is_refused(
    tmp_path: Path, taken: dict[str, bytes], suffix: str, share: float
) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(taken[suffix][: int(len(taken[suffix]) * share)])
    _refused(file, str(file))


def test_cut_off_member_is_named(file: Path) -> None:
    info = next(m for m in _members(file) if m.name.endswith("adapter_model.safetensors"))
    file.write_bytes(file.read_bytes()[: info.offset_data + info.size // 2])
    _refused(file, info.name)


@pytest.mark.parametrize("what", ["missing", "extra", "twice"])
def test_member_too_few_or_too_many_is_named(file: Path, what: str) -> None:
    members = _unpack(file)
    at = next(i for i, (info, _) in enumerate(members) if info.name == "workspace/recipes/docs.yaml")
    if what == "missing":
        del members[at]
    elif what == "twice":
        members.insert(at, members[at])
    else:
        members.insert(at, (tarfile.TarInfo("workspace/extra.yaml"), b"x"))
    named = "workspace/extra.yaml" if what == "extra" else "workspace/recipes/docs.yaml"
    _refused(_pack(file, members), named)


def _link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "info",
    [
        tarfile.TarInfo("/tmp/llmops-absolute"),
        tarfile.TarInfo("../outside"),
        tarfile.TarInfo("workspace/../../outside"),
        tarfile.TarInfo("workspace/./x"),
        _link("workspace/link", tarfile.SYMTYPE),
        _link("workspace/hard", tarfile.LNKTYPE),
        _link("workspace/fifo", tarfile.FIFOTYPE),
        _link("workspace/device", tarfile.CHRTYPE),
        _link("workspace/folder", tarfile.DIRTYPE),
    ],
    ids=lambda info: info.name,
)
def test_member_that_would_leave_its_place_is_refused(file: Path, info: tarfile.TarInfo) -> None:
    _refused(_pack(file, [(info, b""), *_unpack(file)]), repr(info.name), "may not be in a backup")
    assert not (file.parent.parent / "outside").exists()
    assert not Path("/tmp/llmops-absolute").exists()


def _forge(file: Path, name: str, old: bytes, new: bytes) -> None:
    """Change a member and the list of members so that sizes and digests agree again."""
    members = _unpack(file)
    (manifest, listed) = members.pop()
    body = json.loads(listed)
    changed = []
    for info, content in members:
        if info.name == name:
            assert old in content
            entry = next(m for m in body["members"] if m["path"] == name)
            forged = content.replace(old, new, 1)
            entry |= {"size": len(forged), "sha256": hashlib.sha256(forged).hexdigest()}
        changed.append((info, content.replace(old, new, 1) if info.name == name else content))
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    manifest.name = f"manifest-{hashlib.sha256(text).hexdigest()}.json"
    _pack(file, [*changed, (manifest, text)])


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("database/events.jsonl", b"docs", b"dogs", "was edited"),
        ("database/ratings.jsonl", b'"choice":"left"', b'"choice":"right"', "ratings: #1 was changed"),
        ("database/showings.jsonl", b'"rater":"ann"', b'"rater":"eve"', "the showing of #"),
        ("workspace/llmops.yaml", b"name:", b"nome:", "nome is not a setting"),
    ],
)
def test_forged_backup_with_right_sums_is_refused_by_the_evidence(
    file: Path, name: str, old: bytes, new: bytes, said: str
) -> None:
    _forge(file, name, old, new)
    _refused(file, said, code=2 if "llmops.yaml" in name else 4)


# ------------------------------------------------------------ refused before and while writing


def test_lost_or_damaged_artifact_is_found_when_the_backup_is_taken(full: Loop, tmp_path: Path) -> None:
    store = Store(full.root / ".llmops/store")
    digest = store.digests("adapter")[0]
    weights = store.path("adapter", digest) / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"changed")
    done = full.llmops("backup", "../a.tar", check=False)
    assert (done.code, f"adapter {digest[:12]}" in done.err) == (4, True)
    store.remove("adapter", digest)
    done = full.llmops("backup", "../a.tar", check=False)
    assert done.code == 4
    assert re.search(rf"adapter {digest[:12]}, named by event [12] \(adapter.registered\) is gone", done.err)
    assert [p.name for p in tmp_path.iterdir() if "a.tar" in p.name] == []


def test_nothing_is_overwritten(full: Loop, tmp_path: Path) -> None:
    full.llmops("backup", "../a.tar")
    before = (tmp_path / "a.tar").read_bytes()
    for arguments, said in (
        (("backup", "../a.tar"), "is there already"),
        (("backup", "../a.zip"), "end it with .tar or .tar.gz"),
        (("restore", "../a.tar", "."), "is not empty"),
        (("restore", "../a.tar", "../a.tar"), "is a file"),
        (("restore", "../none.tar", "../b"), "no such file"),
        (("restore", ".", "../b"), "is no file"),
    ):
        done = full.llmops(*arguments, check=False)
        assert (done.code, said in done.err) == (2, True), done.err
    assert (tmp_path / "a.tar").read_bytes() == before
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_full_disk_leaves_nothing_behind(full: Loop, tmp_path: Path, command: str) -> None:
    full.llmops("backup", "../a.tar")
    before = sorted(p for p in tmp_path.rglob("*") if ".llmops/llmops.db" not in str(p))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    arguments = ["backup", "../b.tar"] if command == "backup" else ["restore", "../a.tar", "../b"]
    done = subprocess.run(
        [sys.executable, "-m", "llmops.cli", *arguments],
        cwd=full.root, env=full.environment(), capture_output=True, text=True, preexec_fn=limit, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p for p in tmp_path.rglob("*") if ".llmops/llmops.db" not in str(p)) == before


def test_killed_backup_leaves_no_file_that_looks_like_one(full: Loop, tmp_path: Path) -> None:
    registry = Registry.of(find_workspace(full.root))
    large = registry.store.put_files("x", {"f": os.urandom(64 << 20)})
    registry.ledger.append("run.started", {"run": large})
    child = subprocess.Popen(
        [sys.executable, "-m", "llmops.cli", "backup", "../a.tar.gz"],
        cwd=full.root, env=full.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(p.stat().st_size for p in tmp_path.glob(".a.tar.gz.*")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.002)
    child.kill()
    child.wait()
    assert not (tmp_path / "a.tar.gz").exists()
    assert list((full.root / ".llmops").glob("backup-*"))
    assert "leftover  .llmops/backup-" in full.llmops("gc", "--older-than", "0").out
    assert not list((full.root / ".llmops").glob("backup-*"))
    assert "events" in full.llmops("backup", "../a.tar.gz").out
