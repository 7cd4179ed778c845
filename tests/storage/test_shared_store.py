"""The store on each backend, and what a bucket adds: whole or not at all, verified on the way in, missed when gone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmops.errors import ConfigError, InvalidEvidence, StoreError
from llmops.manifest import sha256_file
from llmops.records import PromptContract
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.remote import Remote
from llmops.settings import Workspace, find_workspace
from llmops.store import Store
from tests.evidence import register
from tests.storage.backends import Backend, Bucket, another_workspace

FILES = {"a.txt": b"alpha", "sub/b #1.bin": bytes(range(256))}
CONTRACT = PromptContract("{{ messages }}", "a" * 64, (2,), None)


def _damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")


# ------------------------------------------------------------ on both backends


def test_files_folders_and_records_return_equal(workspace: Workspace, tmp_path: Path) -> None:
    store = Store.of(workspace)
    digest = store.put_files("adapter", FILES)
    for name, content in FILES.items():
        assert (store.verify("adapter", digest) / name).read_bytes() == content
    again = shutil.copytree(store.path("adapter", digest), tmp_path / "again")
    (again / "manifest.json").unlink()
    assert store.put_folder("adapter", again) == digest
    assert store.put_record(CONTRACT) == CONTRACT.digest()
    assert store.get_record(PromptContract, CONTRACT.digest()) == CONTRACT
    store.verify("prompt_contract_record", CONTRACT.digest())
    assert store.kinds() == ["adapter", "prompt_contract_record"]
    assert store.digests("adapter") == [digest]
    assert store.digests("nothing") == []
    assert not store.has("adapter", "0" * 64)
    manifest = (store.path("adapter", digest) / "manifest.json").stat().st_size
    assert store.size_bytes("adapter", digest) == 5 + 256 + manifest


def test_changed_byte_is_found_and_left_for_somebody_to_look_at(workspace: Workspace) -> None:
    store = Store.of(workspace)
    digest, contract = store.put_files("adapter", FILES), store.put_record(CONTRACT)
    _damage(store.path("adapter", digest) / "a.txt")
    _damage(store.path("prompt_contract_record", contract) / "record.json")
    for _ in range(2):
        with pytest.raises(InvalidEvidence, match=r"a\.txt was changed"):
            store.verify("adapter", digest)
        with pytest.raises(InvalidEvidence, match=r"record\.json was changed"):
            store.verify("prompt_contract_record", contract)
        with pytest.raises(InvalidEvidence, match="prompt_contract_record"):
            store.get_record(PromptContract, contract)
        store.put_files("adapter", FILES)


def test_removed_artifact_is_gone_and_can_be_stored_again(workspace: Workspace) -> None:
    store = Store.of(workspace)
    digest, other = store.put_files("adapter", FILES), store.put_files("adapter", {"a": b"1"})
    store.remove("adapter", digest)
    store.remove("adapter", digest)
    assert (store.has("adapter", digest), store.digests("adapter")) == (False, [other])
    with pytest.raises(InvalidEvidence, match=rf"adapter {digest[:12]} is gone"):
        store.verify("adapter", digest)
    assert store.put_files("adapter", FILES) == digest
    store.verify("adapter", digest)
    assert list((store.root / ".staging").iterdir()) == []


def test_storing_again_makes_an_artifact_young(workspace: Workspace, backend: Backend) -> None:
    store = Store.of(workspace)
    digest = store.put_files("adapter", FILES)
    if not backend.shared:
        import os

        os.utime(store.path("adapter", digest) / "manifest.json", (1e9, 1e9))
        assert store.age_s("adapter", digest) > 1e8
    before = store.age_s("adapter", digest)
    while store.age_s("adapter", digest) <= before:
        pass
    store.put_files("adapter", FILES)
    assert 0 <= store.age_s("adapter", digest) < 60


def test_registered_adapter_is_found_and_verified(
    workspace: Workspace,
    backend: Backend,
    tiny_model: Path,
    tiny_adapter: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    record = register(Registry.of(workspace), resolve_base(str(tiny_model)), tiny_adapter)
    place = workspace
    if backend.shared:
        place = another_workspace(tmp_path_factory.mktemp("other") / "workspace")
    registry = Registry.of(place)
    assert registry.adapter("latest") == record
    folder = registry.verify(registry.adapter(record.name))
    assert sha256_file(folder / "adapter_model.safetensors") == sha256_file(
        tiny_adapter / "adapter_model.safetensors"
    )
    assert registry.contract(record).digest() == record.prompt_contract
    assert folder.is_relative_to(place.root)


# ------------------------------------------------------------ what a bucket adds


@pytest.fixture
def other(on_s3: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same bucket from a workspace whose cache is empty."""
    return Store.of(another_workspace(tmp_path_factory.mktemp("other") / "workspace"))


def test_bucket_holds_the_files_as_the_folder_does(on_s3: Workspace, bucket: Bucket) -> None:
    store = Store.of(on_s3)
    digest = store.put_files("adapter", FILES)
    folder = store.path("adapter", digest)
    expected = {
        f"team/llmops/adapter/{digest}/{p.relative_to(folder).as_posix()}": p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    }
    assert bucket.contents() == expected


def test_artifact_that_is_not_in_the_cache_is_fetched(on_s3: Workspace, other: Store) -> None:
    digest, contract = Store.of(on_s3).put_files("adapter", FILES), Store.of(on_s3).put_record(CONTRACT)
    assert (other.has("adapter", digest), other.digests("adapter")) == (True, [digest])
    assert other.size_bytes("adapter", digest) == Store.of(on_s3).size_bytes("adapter", digest)
    assert not other.root.exists()
    assert (other.path("adapter", digest) / "sub/b #1.bin").read_bytes() == FILES["sub/b #1.bin"]
    assert other.get_record(PromptContract, contract) == CONTRACT
    assert other.verify("adapter", digest).is_relative_to(other.root)


@pytest.mark.parametrize(
    ("end", "named"), [("a.txt", r"a\.txt was changed"), ("manifest.json", "manifest.json")]
)
def test_what_was_changed_in_the_bucket_never_reaches_the_cache(
    on_s3: Workspace, other: Store, bucket: Bucket, end: str, named: str
) -> None:
    digest = Store.of(on_s3).put_files("adapter", FILES)
    key = bucket.find(end)
    content = bucket.read(key)
    bucket.write(key, content.replace(b"alpha", b"alphb") if end == "a.txt" else content.replace(b"0", b"1"))
    for _ in range(2):
        with pytest.raises(InvalidEvidence, match=named):
            other.path("adapter", digest)
    assert [p for p in other.root.rglob("*") if p.is_file()] == []


def test_manifest_cannot_write_outside_its_folder(on_s3: Workspace, other: Store, bucket: Bucket) -> None:
    digest = Store.of(on_s3).put_files("adapter", {"a.txt": b"alpha"})
    key = bucket.find("manifest.json")
    manifest = json.loads(bucket.read(key))
    manifest["files"][0]["path"] = "../../../../escaped"
    bucket.write(key, json.dumps(manifest).encode())
    with pytest.raises(InvalidEvidence, match="lies outside the artifact"):
        other.path("adapter", digest)


def test_record_changed_in_the_bucket_is_refused(on_s3: Workspace, other: Store, bucket: Bucket) -> None:
    digest = Store.of(on_s3).put_record(CONTRACT)
    key = bucket.find("record.json")
    bucket.write(key, bucket.read(key).replace(b"messages", b"massages"))
    with pytest.raises(InvalidEvidence, match=r"record\.json was changed; the copy at s3://"):
        other.get_record(PromptContract, digest)


@pytest.mark.parametrize("damage", ["delete", "truncate", "delete manifest"])
def test_verify_misses_what_left_the_bucket_and_says_how_to_bring_it_back(
    on_s3: Workspace, bucket: Bucket, damage: str
) -> None:
    store = Store.of(on_s3)
    digest = store.put_files("adapter", FILES)
    key = bucket.find("manifest.json" if damage == "delete manifest" else "a.txt")
    if damage == "truncate":
        bucket.write(key, b"alp")
    else:
        bucket.delete(key)
    name = key.rpartition("/")[2]
    folder = store.root / "adapter" / digest
    with pytest.raises(
        InvalidEvidence, match=rf"{name} (is missing|was changed) at s3://.*; copy {folder} to s3://"
    ):
        store.verify("adapter", digest)
    bucket.write(key, (folder / name).read_bytes())
    store.verify("adapter", digest)


def test_damaged_cache_is_fetched_again_once_it_is_deleted(on_s3: Workspace) -> None:
    store = Store.of(on_s3)
    digest = store.put_files("adapter", FILES)
    folder = store.path("adapter", digest)
    _damage(folder / "a.txt")
    with pytest.raises(InvalidEvidence, match=rf"delete {folder} to fetch it again from s3://"):
        store.verify("adapter", digest)
    (folder / "manifest.json").unlink()
    with pytest.raises(InvalidEvidence, match=rf"manifest\.json is missing; .*delete {folder}"):
        store.verify("adapter", digest)
    shutil.rmtree(folder)
    assert (store.verify("adapter", digest) / "a.txt").read_bytes() == b"alpha"


def test_upload_that_broke_off_is_no_artifact_and_is_completed(
    on_s3: Workspace, other: Store, bucket: Bucket
) -> None:
    digest = Store.of(on_s3).put_files("adapter", FILES)
    bucket.delete(bucket.find("manifest.json"))  # files go first, the manifest last
    bucket.delete(bucket.find("a.txt"))
    assert (other.has("adapter", digest), other.digests("adapter")) == (False, [])
    with pytest.raises(InvalidEvidence, match=r"is gone from .* and s3://"):
        other.path("adapter", digest)
    assert other.put_files("adapter", FILES) == digest
    Store.of(on_s3).verify("adapter", digest)


def test_artifacts_from_before_the_bucket_are_stored_there_when_stored_again(
    on_s3: Workspace, bucket: Bucket, clean_env: pytest.MonkeyPatch
) -> None:
    digest = Store(on_s3.store_root).put_files("adapter", FILES)
    store = Store.of(on_s3)
    with pytest.raises(InvalidEvidence, match="is missing at s3://"):
        store.verify("adapter", digest)
    store.put_files("adapter", FILES)
    store.verify("adapter", digest)
    assert bucket.read(bucket.find("a.txt")) == b"alpha"


def test_unreachable_bucket_stores_nothing_and_is_no_broken_evidence(
    on_s3: Workspace, other: Store, clean_env: pytest.MonkeyPatch
) -> None:
    digest = Store.of(on_s3).put_files("adapter", FILES)
    clean_env.setenv("LLMOPS_STORE_URL", "s3://no-such-bucket/x")
    elsewhere = Store.of(on_s3)
    with pytest.raises(
        StoreError, match=r"s3://no-such-bucket/x: writing failed \(.*bucket does not exist.*\); check"
    ):
        elsewhere.put_files("adapter", {"new": b"1"})
    with pytest.raises(StoreError, match="s3://no-such-bucket/x: is empty or not there"):
        elsewhere.path("adapter", "0" * 64)
    assert [p.name for p in (elsewhere.root / "adapter").iterdir()] == [digest]


def test_commands_end_with_5_when_the_store_does_not_answer(
    on_s3: Workspace, clean_env: pytest.MonkeyPatch
) -> None:
    clean_env.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    clean_env.setenv("AWS_MAX_ATTEMPTS", "1")
    command = [sys.executable, "-m", "llmops.cli", "ledger", "verify"]
    done = subprocess.run(command, cwd=on_s3.root, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "listing failed (Could not connect to the endpoint URL" in done.stderr
    assert "check LLMOPS_STORE_URL, its credentials and the network" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------ other addresses


def test_folder_shared_by_two_workspaces_works_as_a_bucket_does(
    tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "mount/store"
    clean_env.setenv("LLMOPS_STORE_URL", f"file://{shared}")
    one, two = (Store.of(another_workspace(tmp_path / name)) for name in ("one", "two"))
    with pytest.raises(StoreError, match="is not there; mount or create it"):
        one.put_files("adapter", FILES)
    assert not shared.exists()
    shared.mkdir(parents=True)
    digest = one.put_files("adapter", FILES)
    assert two.verify("adapter", digest).is_relative_to(tmp_path / "two")
    assert (two.kinds(), two.digests("adapter")) == (["adapter"], [digest])
    (shared / "adapter" / digest / "a.txt").unlink()
    with pytest.raises(InvalidEvidence, match=r"a\.txt is missing at file://"):
        two.verify("adapter", digest)
    two.remove("adapter", digest)
    assert [p for p in shared.rglob("*") if p.is_file()] == []


def test_upload_of_which_one_file_is_refused_leaves_no_artifact(
    tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    clean_env.setenv("LLMOPS_STORE_URL", f"file://{shared}")
    store = Store.of(another_workspace(tmp_path / "workspace"))
    digest = Store(tmp_path / "elsewhere").put_files("adapter", FILES)
    (shared / "adapter" / digest).mkdir(parents=True)
    (shared / "adapter" / digest / "sub").write_text("a file where a folder is needed")
    with pytest.raises(StoreError, match="writing failed"):
        store.put_files("adapter", FILES)
    assert (store.has("adapter", digest), store.digests("adapter")) == (False, [])
    assert [p for p in store.root.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("bucket/prefix", r"LLMOPS_STORE_URL: is no URL of a folder; give for example s3://bucket/prefix"),
        ("s3://", "is no URL of a folder"),
        ("nosuch://a/b", r"nosuch:// cannot be used \(Protocol not known"),
        ("gs://a/b", r"the library for gs:// is not installed; .*gcsfs"),
    ],
)
def test_address_that_cannot_be_used_is_named(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=message):
        Remote(url)


def test_missing_s3_library_says_what_to_install(on_s3: Workspace) -> None:
    code = """
import sys
sys.modules["s3fs"] = None
from llmops.cli.__main__ import main
sys.argv = ["llmops", "adapter", "list"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=on_s3.root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "the library for s3:// is not installed; pip install 'llmops[s3]'" in done.stderr


def test_password_in_a_store_address_is_never_shown() -> None:
    with pytest.raises(StoreError, match=r"store ftp://127\.0\.0\.1:9/store: cannot be opened") as caught:
        Remote("ftp://user:secret@127.0.0.1:9/store")
    assert "secret" not in str(caught.value)


def test_workspace_without_the_variable_keeps_its_folder(
    tmp_path: Path, clean_env: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    store = Store.of(find_workspace(tmp_path))
    assert (store.root, store.remote) == (tmp_path / ".llmops/store", None)
