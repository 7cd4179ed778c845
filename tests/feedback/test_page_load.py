"""A hundred raters at one page at once, over real HTTP: nothing is lost, doubled, or given to two of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select

from bench._crowd import Crowd, vote
from llmops.ledger import Ledger
from llmops.ratings.check import verify_ratings
from llmops.registry.adapters import Registry
from llmops.settings import Workspace, find_workspace
from llmops.tables import showings
from tests.feedback.browser import CHOICES, plain_items, put_campaign, rater_id, ratings_of, start_page
from tests.storage.conftest import clean_env, database, postgres_uri

__all__ = ["clean_env", "database", "postgres_uri"]


def _require_all_saved(workspace: Workspace, crowd: Crowd, n_items: int) -> None:
    put_campaign(workspace, plain_items(n_items), votes=1)
    served = start_page(workspace)
    try:
        voted = asyncio.run(vote(served.url, crowd))
    finally:
        served.kill()
    assert voted.errors == []
    assert voted.n_doubled == 0
    assert len(voted.saved) >= crowd.n_raters
    rows = ratings_of(workspace)
    told = {
        n: (rater_id(workspace, who), shown, CHOICES[said]) for n, (who, shown, said) in voted.saved.items()
    }
    assert {r.number: (r.rater, r.showing, r.choice) for r in rows} == told
    assert max(Counter(r.item for r in rows).values()) == 1
    with Ledger.of(workspace).engine.connect() as connection:
        assigned = Counter(connection.execute(select(showings.c.item)).scalars())
    assert max(assigned.values()) == 1, "an item was given to two raters"
    registry = Registry.of(workspace)
    assert verify_ratings(registry.store, registry.ledger) == len(rows)


HUNDRED = Crowd(n_raters=100, every_s=5.0, for_s=60.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_raters_lose_and_double_nothing_on_sqlite(workspace: Workspace) -> None:
    _require_all_saved(workspace, HUNDRED, 4000)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_raters_lose_and_double_nothing_on_postgresql(
    tmp_path: Path, database: str, clean_env: pytest.MonkeyPatch
) -> None:
    clean_env.setenv("LLMOPS_DATABASE_URL", database)
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    _require_all_saved(find_workspace(tmp_path), HUNDRED, 4000)
