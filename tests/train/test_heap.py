"""The heap of processes that train: holes join, and the command line is what sets it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmops.train.memory import heap

PATTERN = """
import ctypes, random, re
libc = ctypes.CDLL(None)
libc.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]
libc.mallopt(-3, 1 << 25)  # blocks come from the heap, as in a process that has freed larger ones
live = peak = 0

def take(n):
    global live, peak
    place = ctypes.c_void_p()
    libc.posix_memalign(ctypes.byref(place), 64, n)  # as torch does
    libc.memset(place, 1, n)
    live += n
    peak = max(peak, live)
    return place, n

def drop(block):
    global live
    libc.free(block[0])
    live -= block[1]

def resident():
    return int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

draw, before = random.Random(0), resident()
for step in range(2):
    n, kept = 800_000 - 200_000 * step, []
    for width in (1, 1, 4) * 20:  # layers: blocks of a moment, one for the backward pass, and small things
        first, stays, second = take(n * width), take(n * width), take(n)
        drop(first), drop(second)
        kept += [stays, (libc.malloc(draw.choice((24, 40, 56, 72, 88, 104))), 0)]
    for block in reversed(kept):
        if block[1]:
            gradient = take(block[1])
            drop(block), drop(gradient)
        else:
            libc.free(block[0])
print((resident() - before) / peak)
"""


def _taken_over_live(environment: dict[str, str]) -> float:
    """Resident bytes of a process over those that were alive in it at most."""
    inherited = {name: value for name, value in os.environ.items() if name != heap.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", PATTERN], capture_output=True, text=True, check=True,
        env=inherited | environment,
    )  # fmt: skip
    return float(done.stdout)


def test_holes_of_the_heap_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(heap.VARIABLE, raising=False)
    joined = _taken_over_live(heap.heap_environment())
    assert joined < 1.2
    assert joined < 0.9 * _taken_over_live({})


def test_commands_that_train_begin_again_with_it_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: begun.append(arguments))
    monkeypatch.delenv(heap.VARIABLE, raising=False)

    def run(*words: str, within: tuple[str, ...] = ("-P", "-m", "llmops.cli")) -> None:
        monkeypatch.setattr(sys, "argv", ["llmops", *words])
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, *within, *words])
        heap.begin_again(("finetune",))

    run("gate", "plan")
    run()
    monkeypatch.setattr(sys, "argv", ["llmops", "finetune", "a.yaml"])
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "pytest"])
    heap.begin_again(("finetune",))
    assert begun == []
    run("finetune", "a.yaml", "--set", "lora.r=8")
    ((program, words, environment),) = begun
    assert program == sys.executable
    assert words == [sys.executable, "-P", "-m", "llmops.cli", "finetune", "a.yaml", "--set", "lora.r=8"]
    assert environment[heap.VARIABLE] == heap.WITHOUT_CACHES
    monkeypatch.setenv(heap.VARIABLE, "glibc.malloc.check=1")  # the user's own, or what we have set
    run("finetune", "a.yaml")
    assert len(begun) == 1
