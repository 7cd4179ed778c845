"""Who asks: what a key stands for once it was recognised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AccessRole = Literal["client", "rater", "operator", "admin"]


@dataclass(frozen=True)
class Principal:
    """Whoever made a request, as far as access goes.

    `key` is the key's id, never the key; `tenant` is whom its use is counted for; `names` are the public names it may
    use, None for all.
    """

    key: str | None
    tenant: str
    role: AccessRole
    names: frozenset[str] | None = None


OPEN = Principal(None, "local", "admin")
"""Everyone on a loopback address that has no keys."""
