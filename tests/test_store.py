from __future__ import annotations

import json
import resource
import subprocess
from multiprocessing import get_context
from pathlib import Path

import pytest

from llmops.errors import InvalidEvidence, StoreError
from llmops.manifest import sha256_file
from llmops.records import PromptContract
from llmops.store import Store

FILES = {"a.txt": b"alpha", "sub/b.bin": bytes(range(256))}
CONTRACT = PromptContract("{{ messages }}", "a" * 64, (2,), None)


def test_same_files_have_the_same_digest_in_any_order_and_place(tmp_path: Path) -> None:
    one = Store(tmp_path / "one").put_files("adapter", FILES)
    two = Store(tmp_path / "two").put_files("adapter", dict(reversed(FILES.items())))
    assert one == two


def test_folder_and_files_of_equal_content_have_the_same_digest(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = store.put_files("adapter", FILES)
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    for name, content in FILES.items():
        (source / name).write_bytes(content)
    assert store.put_folder("adapter", source) == digest
    assert (store.path("adapter", digest) / "sub/b.bin").read_bytes() == FILES["sub/b.bin"]


def test_file_hash_equals_coreutils(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * (3 << 20))
    expected = subprocess.run(
        ["sha256sum", str(path)], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert sha256_file(path) == expected


@pytest.mark.parametrize("damage", ["change", "remove", "add", "manifest"])
def test_one_altered_file_is_named(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    digest = store.put_files("adapter", FILES)
    folder = store.path("adapter", digest)
    target = (
        folder
        / {"change": "a.txt", "remove": "sub/b.bin", "add": "extra", "manifest": "manifest.json"}[damage]
    )
    if target.exists():
        target.chmod(0o644)
    if damage == "remove":
        target.unlink()
    elif damage == "manifest":
        manifest = json.loads(target.read_text())
        manifest["files"][0]["sha256"] = "0" * 64
        target.write_text(json.dumps(manifest))
    else:
        target.write_bytes(b"alphb")
    with pytest.raises(InvalidEvidence, match=target.name):
        store.verify("adapter", digest)


def test_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidEvidence, match="report_record abababababab is gone"):
        Store(tmp_path).path("report_record", "ab" * 32)


def test_record_returns_equal_and_an_edited_one_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put_record(CONTRACT)
    assert digest == CONTRACT.digest()
    assert store.get_record(PromptContract, digest) == CONTRACT
    path = store.path("prompt_contract_record", digest) / "record.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("messages", "massages"))
    with pytest.raises(InvalidEvidence, match="was changed"):
        store.get_record(PromptContract, digest)


def _put_under_limit(root: Path, limit_bytes: int) -> str:
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write itself fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    try:
        return Store(root).put_files("adapter", {"ok": b"1", "weights": b"x" * (4 * limit_bytes)})
    except StoreError as error:
        return f"StoreError {error}"


def test_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    with get_context("spawn").Pool(1) as pool:
        outcome = pool.apply(_put_under_limit, (tmp_path, 100_000))
    assert outcome.startswith("StoreError store: adapter could not be written")
    assert "File too large" in outcome
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert Store(tmp_path).digests("adapter") == []


def _put_often(root: Path) -> list[str]:
    return [Store(root).put_files("adapter", {"n": str(i).encode()}) for i in range(25)]


def test_two_processes_store_the_same_content_at_once(tmp_path: Path) -> None:
    with get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_put_often, [tmp_path, tmp_path])
    assert first == second
    for digest in first:
        Store(tmp_path).verify("adapter", digest)
    assert list((tmp_path / ".staging").iterdir()) == []
