"""How the C library's heap is set for training, which only a process's environment can say.

torch asks for blocks with room to align them, and glibc splits what is left over into small pieces. Its caches of small
pieces (tcache, fastbins) never join them to their neighbours again, so the hole that a block leaves does not take the
next of the same size, and a step on a CPU holds up to twice what is alive in it. Without these caches holes join: a
deep, narrow model's peak fell from 2,605 to 1,835 MB for the same processor time (53.5 and 53.2 s).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection

VARIABLE = "GLIBC_TUNABLES"
WITHOUT_CACHES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def heap_environment() -> dict[str, str]:
    """What a process that trains gets in its environment; nothing off glibc, or where the user has set it."""
    if VARIABLE in os.environ or not _on_glibc():
        return {}
    return {VARIABLE: WITHOUT_CACHES}


def begin_again(commands: Collection[str]) -> None:
    """Replace this process by the same command with `heap_environment`, where it is one of `commands`.

    A process that runs the command line for another program (a test, a notebook) stays as it is: its own arguments are
    not those of the command.
    """
    words = sys.argv[1:]
    if not words or words[0] not in commands or sys.orig_argv[-len(words) :] != words:
        return
    if found := heap_environment():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **found})


def _on_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):  # another libc, or another system
        return False
