"""What a run leaves behind about itself: the code it ran, the packages, the machine. Reads git and the system only."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

MAX_UNTRACKED_BYTES = 1 << 20
_SECRET_NAMES = (".env", ".netrc", "id_rsa", "id_ed25519", "credentials")
_SECRET_SUFFIXES = (".pem", ".key", ".p12", ".pfx")


@dataclass(frozen=True)
class GitState:
    """The commit of a repository and what differs from it; `diff` is empty for a clean tree."""

    sha: str | None
    diff: bytes

    @property
    def diff_sha256(self) -> str | None:
        """sha256 of the diff; None for a clean tree."""
        return hashlib.sha256(self.diff).hexdigest() if self.diff else None


def git_state(folder: Path) -> GitState | None:
    """The state of the repository around `folder`: changed files and untracked ones (ignored files left out).

    Untracked files over 1 MiB, and those whose names say that they hold secrets, stand in the diff by digest alone.

    Returns:
        None without a repository or without git; a sha of None before the first commit.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    root = Path(os.fsdecode(top.rstrip(b"\n")))
    sha = _git(root, "rev-parse", "--verify", "HEAD")
    # Against the empty tree before the first commit: everything staged counts as a change.
    against = "HEAD" if sha else _EMPTY_TREE
    diff = _git(root, "diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", against) or b""
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z") or b""
    names = sorted(os.fsdecode(name) for name in untracked.split(b"\0") if name)
    return GitState(
        sha.decode().strip() if sha else None, diff + b"".join(_untracked(root, name) for name in names)
    )


_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # git's well-known id of a tree without files


def _git(folder: Path, *arguments: str) -> bytes | None:
    command = ["git", "-c", "core.quotePath=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        return None
    # `diff --no-index` exits with 1 when there is a difference, which is what it is asked for here.
    return done.stdout if done.returncode == 0 or "--no-index" in arguments else None


def _untracked(root: Path, name: str) -> bytes:
    path = root / name
    try:
        size, secret = path.lstat().st_size, _names_a_secret(path)
        if path.is_file() and (size > MAX_UNTRACKED_BYTES or secret):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            why = "its name says secret" if secret else "large"
            return f"untracked file left out ({why}): {name} {size} bytes sha256 {digest}\n".encode()
    except OSError as error:
        return f"untracked file could not be read: {name} ({error.strerror})\n".encode()
    return (
        _git(root, "diff", "--no-index", "--binary", "--no-color", "--no-ext-diff", "--", "/dev/null", name)
        or b""
    )


def _names_a_secret(path: Path) -> bool:
    return path.name.startswith(_SECRET_NAMES) or path.suffix in _SECRET_SUFFIXES


def installed_packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = dict(filter(None, map(_name_and_version, distributions())))
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _name_and_version(one: Distribution) -> tuple[str, str] | None:
    """Read from the head of its metadata alone: parsing descriptions too takes twenty times as long."""
    text = one.read_text("METADATA") or one.read_text("PKG-INFO") or ""
    lines = [line.partition(": ") for line in text.partition("\n\n")[0].splitlines()]
    fields = {name: value.strip() for name, _, value in reversed(lines)}
    return (fields["Name"], fields["Version"]) if fields.get("Name") and "Version" in fields else None


def hardware(device: str) -> dict[str, str]:
    """The machine in words: processor, cores usable, threads, memory, accelerator, operating system, Python."""
    import torch

    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found = {
        "device": device,
        "processor": _processor(),
        "n_cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "n_threads": str(torch.get_num_threads()),
        "memory_bytes": str(pages * page_bytes),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if device == "cuda":
        found |= {"accelerator": torch.cuda.get_device_name(0), "cuda": str(torch.version.cuda)}
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()
