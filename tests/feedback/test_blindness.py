"""Blindness: everything a browser received before each vote says nothing of which answer is whose.

Read are all bodies and headers, the document and the browser's storage; and whether anything of what came, in its
order, length or ids, goes with the side that was drawn.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from playwright.sync_api import Response
from scipy.stats import binomtest

from llmops.ratings.campaigns import find_campaign
from llmops.records import Item
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from tests.feedback.browser import (
    GROUP,
    SOURCE,
    SYSTEMS,
    Rater,
    book_of,
    chromium,
    item,
    put_campaign,
    ratings_of,
    serving_page,
)

pytestmark = pytest.mark.browser

ITEM_KEYS = {"showing", "messages", "answers", "role", "content", "html", "text", "named"}
WORDS = (
    "first",
    "second",
    "candidate",
    "baseline",
    "champion",
    "canary",
    "gold",
    "repeat",
    "latency",
    "dwell",
)
ONCE_IN_A_MILLION = 1e-6
LONG_HEX = re.compile("[0-9a-f]{64,}")


@dataclass
class Received:
    """What came since the page was opened: whole responses, and the items in the order they were drawn."""

    bodies: list[str] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)

    def keep(self, response: Response) -> None:
        headers = json.dumps(response.headers)
        body = response.body().decode(errors="replace") if response.status == 200 else ""
        if "component_server" in response.url:
            self.bodies.append(headers + body)
            drawn = json.loads(body).get("item")
            if drawn:
                self.items.append(drawn)
        elif "/assets/" not in response.url:  # Gradio's own scripts, the same for every page
            self.bodies.append(headers + body)


def pairs(n: int) -> list[Item]:
    """Items whose answers look alike: digests of a number, so that no text of one system differs in kind."""
    drawn = [item(_words("p", i), _words("a", i), _words("b", i)) for i in range(n)]
    repeats = [replace(drawn[i], repeat_of=drawn[i].digest) for i in range(0, n // 10)]
    gold = [
        replace(item(_words("g", i), _words("c", i), _words("d", i)), known="first") for i in range(n // 10)
    ]
    return [*drawn, *repeats, *gold]


def _words(kind: str, i: int) -> str:
    digest = hashlib.sha256(f"{kind}{i}".encode()).hexdigest()
    return " ".join(digest[k : k + 4] for k in range(0, 24, 4))


def _rate_all(workspace: Workspace, n: int) -> tuple[Received, int]:
    """Rate every item through a browser, reading all that came before each vote."""
    put_campaign(workspace, pairs(n))
    campaign = find_campaign(Registry.of(workspace).store, Registry.of(workspace).ledger, "c")
    known = {i.digest for i in book_of(workspace).all_items()}
    secret = {
        *SYSTEMS,
        *(s[:12] for s in SYSTEMS),
        GROUP,
        SOURCE,
        campaign.digest(),
        campaign.items,
        campaign.base,
    }
    received, choices = Received(), random.Random(0)
    with serving_page(workspace) as served, chromium() as browser:
        ann = Rater(browser, served.url, "Ann")
        ann.context.on("response", received.keep)
        ann.page.reload()
        ann.sign_in()
        ann.context.remove_listener("response", ann._keep)  # what came is read once, here
        n_read = n_rated = 0
        while (seen := _looked_at(ann))["open"]:
            came = "".join(received.bodies[n_read:]) + seen["document"] + seen["stored"]
            n_read = len(received.bodies)
            assert not [word for word in secret if word in came]
            # A digest in a text lies within a run of hexadecimal digits.
            assert not [word for run in set(LONG_HEX.findall(came)) for word in known if word in run]
            ann.page.keyboard.press(choices.choice("1234"))
            ann.saved(seen["line"])
            n_rated += 1
        ann.close()
    return received, n_rated


READY = """
document.querySelector('[data-choice=a]').getAttribute('aria-disabled') !== 'true'
 || document.querySelector('[data-view=done]').hidden === false"""
LOOK = """({
  open: !document.querySelector('[data-view=item]').hidden,
  line: document.querySelector('[data-part=status]').textContent,
  document: document.documentElement.outerHTML,
  stored: JSON.stringify([
    {...localStorage}, {...sessionStorage}, document.cookie, history.state, Object.keys(window)
  ]),
})"""


def _looked_at(ann: Rater) -> dict[str, Any]:
    """All that the browser holds once an item is drawn, or none is left."""
    ann.page.wait_for_function(READY)
    found: dict[str, Any] = ann.page.evaluate(LOOK)
    return found


def _require_blind(workspace: Workspace, n: int) -> None:
    received, n_rated = _rate_all(workspace, n)
    assert n_rated == len(received.items) == n + 2 * (n // 10)
    for drawn in received.items:
        assert _keys(drawn) == ITEM_KEYS, "gold items and repeats look like all others"
        assert not [word for word in WORDS if word in json.dumps(drawn)]
    rows = ratings_of(workspace, "Ann")
    lefts = {row.showing: row.left for row in rows}
    sides = [lefts[drawn["showing"]] for drawn in received.items]
    fresh = [row.left for row in rows if row.item not in _repeated(workspace)]
    assert _even(sum(fresh), len(fresh)), f"{sum(fresh)} of {len(fresh)} on one side"
    for name, sign in SIGNS.items():
        agreeing = sum(sign(drawn) == left for drawn, left in zip(received.items, sides, strict=True))
        assert _even(agreeing, len(sides)), f"{name} tells the side in {agreeing} of {len(sides)}"


SIGNS: dict[str, Callable[[dict[str, Any]], int]] = {
    "the id's first bit": lambda drawn: int(drawn["showing"][0], 16) >> 3,
    "the id's last bit": lambda drawn: int(drawn["showing"][-1], 16) & 1,
    "the longer answer": lambda drawn: int(
        len(drawn["answers"][0]["text"]) > len(drawn["answers"][1]["text"])
    ),
    "the order of the alphabet": lambda drawn: int(drawn["answers"][0]["text"] > drawn["answers"][1]["text"]),
}


def _even(k: int, n: int) -> bool:
    """Whether a fair coin shows a count as far from half more than once in a million times."""
    return float(binomtest(k, n).pvalue) > ONCE_IN_A_MILLION


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in _keys(inner)}
    return {key for inner in value for key in _keys(inner)} if isinstance(value, list) else set()


def _repeated(workspace: Workspace) -> set[str]:
    return {i.digest for i in book_of(workspace).all_items() if i.repeat_of is not None}


def test_thirty_pairs_tell_nothing_before_their_votes(workspace: Workspace) -> None:
    _require_blind(workspace, 30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_pairs_tell_nothing_before_their_votes(workspace: Workspace) -> None:
    _require_blind(workspace, 500)
