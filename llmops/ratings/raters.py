"""What raters are called, and which of them are somebody else's."""

from __future__ import annotations

import unicodedata

from llmops.auth import Keys
from llmops.errors import BadRequest

MAX_RATER_CHARACTERS = 128
IMPORTED = ("argilla:", "label_studio:")
"""How the names of raters begin whose answers were imported; nobody rates under such a name."""


def require_rater(rater: str) -> str:
    """A rater's name in one form (spaces, letter case, Unicode), so that one person is one rater.

    Raises:
        BadRequest: empty, longer than 128 characters, not printable, or an imported rater's.
    """
    name = unicodedata.normalize("NFKC", rater).casefold().strip()
    if not name or len(name) > MAX_RATER_CHARACTERS or not name.isprintable() or is_imported(name):
        raise BadRequest(
            f"rater {rater[:40]!r}: give a name of 1 to {MAX_RATER_CHARACTERS} printable characters"
        )
    return name


def rater_id(keys: Keys, name: str) -> str:
    """What stands with the ratings of whoever has this name: a digest that only who has the database can compute.

    Raises:
        BadRequest: it is no name of a rater.
    """
    return keys.pseudonym(require_rater(name))


def is_imported(rater: str) -> bool:
    """Whether a rater's answers were brought from elsewhere."""
    return rater.startswith(IMPORTED)
