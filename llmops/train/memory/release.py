"""Giving memory back between the stages of a run."""

from __future__ import annotations

import ctypes
import gc


def release_memory() -> None:
    """Return what is free to the system: what training let go of would otherwise be held while the adapter is probed.

    The C library keeps a heap with holes in it, half of a step's peak and more; glibc gives it back when asked.
    """
    import torch

    gc.collect()  # a trainer and its model refer to each other
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
