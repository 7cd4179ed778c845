"""The heap of processes that train: the command line sets it. What that saves, bench/memory.py measures."""

from __future__ import annotations

import os
import sys

import pytest

from llmops.train.memory import heap


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
