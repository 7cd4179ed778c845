"""What a run writes down about the code it ran."""

from __future__ import annotations

import hashlib
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import pytest

from llmops.train.lineage import MAX_UNTRACKED_BYTES, git_state, installed_packages


def _git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", *identity, "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    (root / "deep").mkdir(parents=True)
    _git(root, "init", "-q")
    (root / "a.txt").write_text("one\n")
    (root / "deep" / "b.bin").write_bytes(bytes(range(256)))
    (root / ".gitignore").write_text("ignored.txt\n")
    _git(root, "add", ".")
    _git(root, "commit", "-q", "-m", "start")
    return root


def test_clean_tree_has_a_commit_and_no_diff(repository: Path) -> None:
    state = git_state(repository / "deep")
    assert state is not None
    assert (state.sha, state.diff, state.diff_sha256) == (_git(repository, "rev-parse", "HEAD"), b"", None)


def test_diff_applied_to_the_commit_gives_the_tree_again(repository: Path, tmp_path: Path) -> None:
    (repository / "a.txt").write_text("two\n")
    (repository / "deep" / "b.bin").write_bytes(bytes(range(255, -1, -1)))
    (repository / "staged.txt").write_text("staged\n")
    _git(repository, "add", "staged.txt")
    (repository / "new é name.txt").write_text("untracked\n")
    (repository / "new.bin").write_bytes(b"\0\1\2" * 100)
    (repository / "ignored.txt").write_text("not kept\n")
    state = git_state(repository)
    assert state is not None
    assert state.sha is not None
    assert state.diff_sha256 == hashlib.sha256(state.diff).hexdigest()

    copy = tmp_path / "copy"
    _git(tmp_path, "clone", "-q", str(repository), str(copy))
    _git(copy, "checkout", "-q", state.sha)
    subprocess.run(["git", "-C", str(copy), "apply"], input=state.diff, check=True)
    names = ["a.txt", "deep/b.bin", "staged.txt", "new é name.txt", "new.bin"]
    assert {n: (copy / n).read_bytes() for n in names} == {n: (repository / n).read_bytes() for n in names}
    assert not (copy / "ignored.txt").exists()


def test_large_and_secret_untracked_files_are_named_by_digest_alone(repository: Path) -> None:
    (repository / ".env").write_text("TOKEN=do-not-keep\n")
    (repository / "weights.bin").write_bytes(b"w" * (MAX_UNTRACKED_BYTES + 1))
    state = git_state(repository)
    assert state is not None
    text = state.diff.decode()
    assert "do-not-keep" not in text
    assert f".env 18 bytes sha256 {hashlib.sha256(b'TOKEN=do-not-keep' + bytes([10])).hexdigest()}" in text
    assert f"weights.bin {MAX_UNTRACKED_BYTES + 1} bytes sha256" in text
    assert len(text) < 1000


def test_folder_without_a_repository_has_no_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None


def test_repository_without_a_commit_has_a_diff_and_no_sha(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("first\n")
    state = git_state(tmp_path)
    assert state is not None
    assert state.sha is None
    assert b"+first" in state.diff


def test_installed_packages_are_named_with_versions() -> None:
    import torch

    found = installed_packages()
    assert found["torch"] == torch.__version__
    assert found == {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    assert list(found) == sorted(found, key=str.lower)
