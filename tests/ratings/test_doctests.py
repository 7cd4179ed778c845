"""The examples in docstrings say what the code does."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from llmops.feedback import extras
from llmops.ratings import agreement, outcomes, strength, watch


@pytest.mark.parametrize("module", [agreement, extras, outcomes, strength, watch], ids=lambda m: m.__name__)
def test_examples_hold(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert (found.attempted > 0, found.failed) == (True, 0)
