"""After training: an adapter merged into its base, in the formats that other programs read, checked before it counts.

Whatever is written lies in a folder of its own that appears whole, and only after its answers were compared with the
adapter's. Nothing here loads torch: a format's module is imported when it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llmops.errors import BadRequest
from llmops.schema import Progress, no_progress

if TYPE_CHECKING:
    from llmops.train.export.match import Tolerance
    from llmops.train.export.source import Exported, Source

Writer = Callable[["Source", Path, str, "Tolerance", Progress], "Exported"]

FORMATS: dict[str, tuple[str, ...]] = {
    "safetensors": ("bf16", "fp32", "fp16"),
    "peft": ("fp32",),
    "compressed": ("w8a8", "fp8", "w4a16"),
    "gguf": ("f16", "f32", "bf16", "q8_0"),
}
"""What can be written, and the types of weights each can have; the first is the usual one."""


def choose_form(format: str, dtype: str | None) -> tuple[str, str]:
    """A format and a type it can be written in; without a type the usual one.

    Raises:
        BadRequest: no such format, or not in that type.
    """
    if format not in FORMATS:
        raise BadRequest(f"format {format!r}: is not written; give --as {', '.join(FORMATS)}")
    types = FORMATS[format]
    chosen = types[0] if dtype is None else dtype.lower()
    if chosen not in types:
        raise BadRequest(f"{format} weights of type {dtype!r}: are not written; give {', '.join(types)}")
    return format, chosen


def export(
    source: Source, out: Path, form: tuple[str, str], tolerance: Tolerance, progress: Progress = no_progress
) -> Exported:
    """Write an adapter in a format and type (a pair of `FORMATS`), check it, and tell the ledger.

    Raises:
        BadRequest: the path is taken, or the base cannot be written so.
        InvalidEvidence: what was written does not answer as the adapter does; nothing is left behind.
        StoreError: the disk did not take it; nothing is left behind.
    """
    return _WRITERS[form[0]](source, out, form[1], tolerance, progress)


def _safetensors(source: Source, out: Path, dtype: str, tolerance: Tolerance, progress: Progress) -> Exported:
    from llmops.train.export.merge import merge

    return merge(source, out, dtype, tolerance, progress)


def _peft(source: Source, out: Path, dtype: str, tolerance: Tolerance, progress: Progress) -> Exported:
    from llmops.train.export.peft_folder import write_peft

    return write_peft(source, out, dtype, tolerance, progress)


def _gguf(source: Source, out: Path, dtype: str, tolerance: Tolerance, progress: Progress) -> Exported:
    from llmops.train.export.gguf_file import write_gguf

    return write_gguf(source, out, dtype, tolerance, progress)


def _compressed(source: Source, out: Path, dtype: str, tolerance: Tolerance, progress: Progress) -> Exported:
    from llmops.train.export.compressed import write_compressed

    return write_compressed(source, out, dtype, tolerance, progress)


_WRITERS: dict[str, Writer] = {
    "safetensors": _safetensors,
    "peft": _peft,
    "gguf": _gguf,
    "compressed": _compressed,
}
