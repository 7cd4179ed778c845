"""Many raters at once on the book itself, in threads and processes: nobody's vote is lost, doubled or one too many.

Each rater sends some clicks twice, at the same moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmops.ledger import Ledger
from llmops.ratings.book import RatingBook
from llmops.ratings.check import verify_ratings
from llmops.ratings.rows import Answer
from llmops.settings import Workspace, find_workspace
from llmops.store import Store
from tests.ratings.campaign import book_of, item, make_campaign
from tests.storage.conftest import database, postgres_uri

__all__ = ["database", "postgres_uri"]

RATER = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tests.ratings.test_crowd import rate_all
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import find_campaign
from llmops.ledger import Ledger
from llmops.settings import find_workspace
from llmops.store import Store
workspace = find_workspace(Path(sys.argv[1]))
store, ledger = Store.of(workspace), Ledger.of(workspace)
book = RatingBook(store, ledger, find_campaign(store, ledger, "docs"))
names = sys.argv[2:]
with ThreadPoolExecutor(len(names)) as pool:
    print(json.dumps(dict(zip(names, pool.map(lambda name: rate_all(book, name), names)))))
"""


def rate_all(book: RatingBook, rater: str) -> list[int]:
    """Answer until nothing is left; returns the numbers that were called saved."""
    saved = []
    while (showing := book.next(rater)) is not None:
        answer = Answer("left", key=f"{showing.id}-1")
        numbers = (
            {book.rate(showing.id, answer).number} if len(saved) % 3 else twice(book, showing.id, answer)
        )
        assert len(numbers) == 1
        saved += numbers
    return saved


def twice(book: RatingBook, showing: str, answer: Answer) -> set[int]:
    """The same click sent twice at the same moment; what each is told."""
    numbers: set[int] = set()
    clicks = [
        threading.Thread(target=lambda: numbers.add(book.rate(showing, answer).number)) for _ in range(2)
    ]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    return numbers


def require_exact(workspace: Workspace, book: RatingBook, saved: dict[str, list[int]], votes: int) -> None:
    """Every saved number is a row of its rater, once; every item has its votes, by different people."""
    rows = book.ratings()
    assert [r.number for r in rows] == list(range(1, len(rows) + 1))
    assert sorted(n for each in saved.values() for n in each) == [r.number for r in rows]
    assert {r.number: r.rater for r in rows} == {n: who for who, each in saved.items() for n in each}
    by_item: dict[str, set[str]] = {}
    for row in rows:
        by_item.setdefault(row.item, set()).add(row.rater)
    assert Counter(map(len, by_item.values())) == {votes: len(book.items())}
    assert len(rows) == votes * len(book.items())
    assert verify_ratings(Store.of(workspace), Ledger.of(workspace)) == len(rows)


def crowd(workspace: Workspace, n_items: int, n_raters: int) -> None:
    campaign = make_campaign(workspace, [item(i) for i in range(n_items)], votes_per_item=2)
    names = [f"rater {i}" for i in range(n_raters)]
    books = {name: book_of(workspace, campaign) for name in names}
    with ThreadPoolExecutor(n_raters) as pool:
        saved = dict(zip(names, pool.map(lambda name: rate_all(books[name], name), names), strict=True))
    require_exact(workspace, book_of(workspace, campaign), saved, 2)


@pytest.fixture
def shared(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("LLMOPS_DATABASE_URL", database)
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    return find_workspace(tmp_path)


def test_threads_on_sqlite(workspace: Workspace) -> None:
    crowd(workspace, 20, 8)


def test_threads_on_postgresql(shared: Workspace) -> None:
    crowd(shared, 20, 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_raters_in_processes_on_sqlite(workspace: Workspace) -> None:
    processes(workspace, n_processes=5, n_each=20, n_items=300)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_raters_in_processes_on_postgresql(shared: Workspace) -> None:
    processes(shared, n_processes=5, n_each=20, n_items=300)


def processes(workspace: Workspace, n_processes: int, n_each: int, n_items: int) -> None:
    """Raters in several processes, a thread each."""
    campaign = make_campaign(workspace, [item(i) for i in range(n_items)], votes_per_item=3)
    names = [[f"rater {p}-{i}" for i in range(n_each)] for p in range(n_processes)]
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RATER, str(workspace.root), *mine],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for mine in names
    ]
    saved: dict[str, list[int]] = {}
    for one in running:
        out, _ = one.communicate(timeout=800)
        assert one.returncode == 0
        saved |= json.loads(out)
    require_exact(workspace, book_of(workspace, campaign), saved, 3)
