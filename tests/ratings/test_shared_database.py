"""The claims about several people and processes at once hold on a real PostgreSQL too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmops.settings import Workspace, find_workspace
from tests.ratings import test_book, test_check
from tests.storage.conftest import database, postgres_uri

__all__ = ["database", "postgres_uri"]

CLAIMS: tuple[Callable[[Workspace], None], ...] = (
    test_book.test_two_raters_share_the_items_and_none_is_rated_twice,
    test_book.test_another_answer_supersedes_the_first_and_both_stay,
    test_book.test_closing_while_people_rate_leaves_no_rating_behind_the_closing,
    test_book.test_many_raters_at_once_number_their_ratings_without_gap_or_double,
    test_book.test_verifying_while_people_rate_finds_no_fault,
    test_book.test_database_itself_refuses_a_second_live_rating_of_a_rater,
    test_check.test_ratings_come_out_of_the_database_as_they_went_in,
)


@pytest.fixture
def shared(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose rows lie in a database of their own on the server."""
    monkeypatch.setenv("LLMOPS_DATABASE_URL", database)
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    return find_workspace(tmp_path)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__.removeprefix("test_"))
def test_holds_on_postgresql(claim: Callable[[Workspace], None], shared: Workspace) -> None:
    claim(shared)


def test_tampering_is_found_on_postgresql(shared: Workspace) -> None:
    test_check.test_tampering_is_found_and_named(shared, "side in the showing")
