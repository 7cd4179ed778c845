"""The folder an export is written to: it appears whole, or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmops.errors import BadRequest, StoreError
from llmops.manifest import sync_to_disk


def require_free(target: Path) -> None:
    """Refuse to write over something.

    Raises:
        BadRequest: the path is taken, or its parent is no folder.
    """
    if target.is_symlink() or target.exists():
        raise BadRequest(f"{target}: is there already; give a new path, or remove it first")
    if not target.absolute().parent.is_dir():
        raise BadRequest(f"{target}: {target.absolute().parent} is no folder; make it first")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` to write into; it becomes `target` when the block ends, and is removed when it fails.

    Raises:
        BadRequest: `target` is taken.
        StoreError: the disk did not take it.
    """
    require_free(target)
    stage = target.absolute().with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        stage.mkdir()
        yield stage
        for path in stage.rglob("*"):
            sync_to_disk(path)
        require_free(target)  # a rename would replace an empty folder that came to be meanwhile
        stage.rename(target)
        sync_to_disk(target.absolute().parent)
    except OSError as error:
        raise StoreError(
            f"{target}: could not be written ({error.strerror or error}); free space or fix permissions"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
