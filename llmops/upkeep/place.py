"""A folder that appears whole or not at all: made beside its place, and moved there when it is finished."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmops.errors import BadRequest, StoreError


def require_free(root: Path) -> None:
    """Refuse a place where something would be overwritten.

    Raises:
        BadRequest: it is a file, a folder that is not empty, or a link to nothing.
    """
    if root.is_symlink() and not root.exists():
        raise BadRequest(f"{root}: is a link to nothing; give another folder")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        what = "is not empty" if root.is_dir() else "is a file"
        raise BadRequest(f"{root}: {what}; give a new folder, nothing is ever overwritten")


@contextmanager
def made_beside(root: Path) -> Iterator[Path]:
    """An empty folder beside `root` that takes its place when the block ends, and is removed when the block fails.

    Raises:
        BadRequest: the place is not free.
        StoreError: the disk did not take something; nothing is left behind.
    """
    require_free(root)
    where = root.resolve()
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{where.name}.", dir=where.parent) as scratch:
            stage = Path(scratch) / where.name
            stage.mkdir()
            yield stage
            _move(stage, where)
    except OSError as error:
        raise StoreError(
            f"{root}: cannot be written ({error.strerror or error}); free space or fix permissions"
        ) from error


def _move(stage: Path, where: Path) -> None:
    """Put the finished folder in its place; an empty folder that is there already keeps being the same folder."""
    if not where.exists():
        stage.rename(where)
        return
    moved = []
    try:
        for child in sorted(stage.iterdir()):
            child.rename(where / child.name)
            moved.append(where / child.name)
    except OSError:
        for child in moved:
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        raise
