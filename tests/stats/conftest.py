"""Every calibration test draws from a generator seeded by its own name: nobody chose the seed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by sha256 of the test's name, parameters included."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(request.node.name.encode()).digest()[:8]))
