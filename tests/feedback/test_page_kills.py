"""Killed pages: every number a page called saved is in the database with the answer that was given."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field

import httpx
import pytest

from llmops.ledger import Ledger
from llmops.ratings.check import verify_ratings
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from tests.feedback.browser import (
    CHOICES,
    Rater,
    Seen,
    Served,
    chromium,
    plain_items,
    put_campaign,
    ratings_of,
    require_same,
    start_page,
    wait_until,
)


@dataclass
class Said:
    """What pages called saved: showing and answer by number; and answers whose confirmation never came."""

    saved: dict[int, tuple[str, str]] = field(default_factory=dict)
    n_lost: int = 0


def _submit_until_dead(served: Served, rater: str, said: Said) -> None:
    """Rate as fast as the page answers, until it is gone."""
    choices = random.Random(rater)
    try:
        item = served.call("next_item", rater=rater)["item"]
        while item:
            choice = choices.choice(list(CHOICES))
            said.n_lost += 1
            reply = served.call("rate_item", rater=rater, showing=item["showing"], choice=choice)
            said.n_lost -= 1
            said.saved[reply["saved"]] = (item["showing"], CHOICES[choice])
            item = reply.get("item")
    except (httpx.TransportError, KeyError):
        return


def _kill_while_rating(workspace: Workspace, n_kills: int) -> None:
    moments = random.Random(0)
    put_campaign(workspace, plain_items(400), votes=9)
    said = Said()
    for kill in range(n_kills):
        served = start_page(workspace)
        raters = [
            threading.Thread(target=_submit_until_dead, args=(served, f"rater {r} of {kill % 5}", said))
            for r in range(3)
        ]
        had = len(said.saved)
        for thread in raters:
            thread.start()
        wait_until(lambda had=had: len(said.saved) > had + 3)  # type: ignore[misc]
        threading.Event().wait(moments.uniform(0.0, 0.5))
        served.kill()
        for thread in raters:
            thread.join()
        _require_saved(workspace, said)
    assert len(said.saved) > 3 * n_kills


def _require_saved(workspace: Workspace, said: Said) -> None:
    rows = {r.number: (r.showing, r.choice) for r in ratings_of(workspace)}
    assert {number: rows.get(number) for number in said.saved} == said.saved
    registry = Registry.of(workspace)
    assert verify_ratings(registry.store, registry.ledger) == len(rows)
    assert Ledger.of(workspace).verify() == len(rows) + 1


def test_three_killed_pages_lose_no_rating_they_called_saved(workspace: Workspace) -> None:
    _kill_while_rating(workspace, 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_killed_pages_lose_no_rating_they_called_saved(workspace: Workspace) -> None:
    _kill_while_rating(workspace, 50)


PRESS_2 = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '2', bubbles: true}))"


def _rate_through_kills(workspace: Workspace, n_kills: int) -> None:
    """A browser stays open while its page's server is killed at the press of a key, again and again."""
    moments = random.Random(1)
    put_campaign(workspace, plain_items(n_kills + 2))
    served = start_page(workspace)
    with chromium() as browser:
        ann = Rater(browser, served.url, "Ann").sign_in()
        seen = [ann.answer("a")]
        for _ in range(n_kills):
            shown, line = ann.ready().shown(), ann.text("status")
            ann.page.evaluate(PRESS_2)  # returns at once, with the answer on its way
            threading.Event().wait(moments.uniform(0.0, 0.03))
            served.kill()
            served = start_page(workspace, port=int(served.url.rsplit(":", 1)[1]))
            wait_until(
                lambda: ann.page.is_visible("[data-part=error]") or ann.text("status").startswith("saved")
            )
            if ann.page.is_visible("[data-part=error]"):
                assert "saved" not in ann.text("status")
                assert ann.shown() == shown
                seen.append(ann.answer("b"))  # the same answer again counts once
            else:
                seen.append(Seen(ann.saved(line), shown[0], "b", shown[2]))
        served.kill()
        ann.close()
    require_same(workspace, "Ann", seen)
    rows = ratings_of(workspace)
    assert len({r.item for r in rows}) == len(rows) == n_kills + 1
    registry = Registry.of(workspace)
    assert verify_ratings(registry.store, registry.ledger) == len(rows)


@pytest.mark.browser
def test_a_browser_rates_on_through_two_killed_pages(workspace: Workspace) -> None:
    _rate_through_kills(workspace, 2)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_browser_rates_on_through_twenty_killed_pages(workspace: Workspace) -> None:
    _rate_through_kills(workspace, 20)
