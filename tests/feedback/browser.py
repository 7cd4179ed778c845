"""A rating page in a thread or as a child process, asked over HTTP or driven through Chromium, and campaigns for it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from llmops.feedback.address import Address
from llmops.feedback.page import Place, application, nothing_serves, open_desk, serve_until
from llmops.feedback.sign_in import Door
from llmops.ledger import Ledger
from llmops.listening import bind
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import find_campaign, open_campaign, put_items
from llmops.records import Campaign, CampaignKind, EngineSignature, Item, Message, Rating
from llmops.registry.adapters import Registry
from llmops.settings import Workspace
from tests.feedback.nursery import Forked, fork_page

START_WITHIN_S = 180.0  # importing Gradio on a busy box
WAIT_MS = 30_000
SYSTEMS = ("5ec2e7" + "1" * 58, "5ec2e7" + "2" * 58)
GROUP, SOURCE = "group-behind-the-scenes", "source-behind-the-scenes"
ENGINE = EngineSignature("transformers", "5", "float32", None, "cpu", "b" * 64, 512)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
NO_PROCESS: Any = None
LOOPBACK = Address()


def item(prompt: str, first: str, second: str) -> Item:
    return Item((Message("user", prompt),), (first, second), GROUP, SOURCE)


def plain_items(n: int) -> list[Item]:
    return [item(f"prompt {i}", f"first answer to {i}", f"second answer to {i}") for i in range(n)]


def put_campaign(
    workspace: Workspace,
    items: Sequence[Item],
    votes: int = 1,
    name: str = "c",
    kind: CampaignKind = "compare",
) -> Campaign:
    """Open a campaign of these items; each may be rated by `votes` raters."""
    registry = Registry.of(workspace)
    asked = "Which answer is better?" if kind == "compare" else "What do you think of this answer?"
    n_repeats, n_gold = sum(i.repeat_of is not None for i in items), sum(i.known is not None for i in items)
    campaign = Campaign(
        name, "train", asked, SYSTEMS, None, None, "b" * 64, "c" * 64, ENGINE, {}, put_items(registry.store, items),
        len(items) - n_repeats - n_gold, {}, votes, "2026-11-21T00:00:00.000Z", kind=kind, n_repeats=n_repeats,
        n_gold=n_gold, gold_every=4 if n_gold else 0,
    )  # fmt: skip
    open_campaign(registry.store, registry.ledger, campaign)
    return campaign


def book_of(workspace: Workspace, name: str = "c") -> RatingBook:
    registry = Registry.of(workspace)
    return RatingBook(registry.store, registry.ledger, find_campaign(registry.store, registry.ledger, name))


def ratings_of(workspace: Workspace, rater: str | None = None, name: str = "c") -> list[Rating]:
    """All ratings of a campaign in the database, by number; of one rater when named."""
    known = None if rater is None else rater_id(workspace, rater)
    return [r for r in book_of(workspace, name).ratings() if known in (None, r.rater)]


def rater_id(workspace: Workspace, name: str) -> str:
    """What stands with the ratings of whoever has this name."""
    return Door(Ledger.of(workspace).engine).rater_id(name)


# ---------------------------------------------------------------- the page's process


@dataclass
class Served:
    """A rating page that answers at `url`."""

    url: str
    process: subprocess.Popen[str] | Forked
    workspace: Workspace
    cookies: dict[str, str] = field(default_factory=dict)
    _component: list[int] = field(default_factory=list)

    def call(self, function: str, **data: Any) -> dict[str, Any]:
        """What one of the page's server functions replies, over plain HTTP."""
        reply = self.post(function, data)
        assert reply.status_code == 200, reply.text
        body: dict[str, Any] = reply.json()
        return body

    def post(self, function: str, data: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        if not self._component:
            parts = httpx.get(f"{self.url}/config", timeout=60).json()["components"]
            self._component.append(next(p["id"] for p in parts if p["type"] == "html"))
        body = {
            "data": data,
            "component_id": self._component[0],
            "fn_name": function,
            "session_hash": "session",
        }
        return httpx.post(
            f"{self.url}/gradio_api/component_server/", json=body, timeout=60, headers=headers or {},
            cookies=self.cookies,
        )  # fmt: skip

    def end(self) -> int:
        """Ask it to stop; its exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def start_page(workspace: Workspace, campaign: str = "", port: int = 0) -> Served:
    """Start a page in a process of its own and wait until it says that it answers."""
    said = workspace.root / f"page-{time.monotonic_ns()}.out"
    said.touch()
    return _answering(fork_page(workspace.root, campaign, port, said), said, workspace)


def started(command: Sequence[str], workspace: Workspace, **options: Any) -> Served:
    """A child that prints a page's address, once it has."""
    said = workspace.root / f"page-{time.monotonic_ns()}.out"
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True, **options
        )
    return _answering(process, said, workspace)


def _answering(process: subprocess.Popen[str] | Forked, said: Path, workspace: Workspace) -> Served:
    deadline = time.monotonic() + START_WITHIN_S
    while "http://127.0.0.1:" not in (text := said.read_text()) or not text.endswith("\n"):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise AssertionError(text or "the page said nothing")
        time.sleep(0.02)
    url = next(word for word in text.split() if word.startswith("http://127.0.0.1:"))
    return Served(url, process, workspace)


@contextmanager
def serving_page(
    workspace: Workspace,
    campaign: str | None = None,
    find_endpoint: Callable[[], str] = nothing_serves,
    at: Address = LOOPBACK,
) -> Iterator[Served]:
    """A page that answers, in a thread of this process: Gradio is imported once for all of them."""
    desk, door, chosen = open_desk(workspace, campaign, find_endpoint)
    ended, ready, said = threading.Event(), threading.Event(), list[str]()

    def tell(url: str) -> None:
        said.append(url)
        ready.set()

    def serve() -> None:
        with bind(at.host, at.port, "page") as listener:
            asyncio.run(serve_until(application(desk, door, chosen), Place(at, listener), tell, ended))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(START_WITHIN_S), "the page did not answer"
    try:
        yield Served(said[0], NO_PROCESS, workspace)
    finally:
        ended.set()
        thread.join(60)


# ---------------------------------------------------------------- the browser


def chromium_path() -> str:
    """The Chromium to test with; without one the test is skipped, or fails where CI says that nothing may be."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("LLMOPS_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        reason = f"no Chromium: none of {', '.join(names)} is on PATH and LLMOPS_CHROMIUM is not set"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium."""
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Seen:
    """What a rater saw and answered."""

    number: int
    prompt: str
    choice: str
    chosen: str | None  # the text on the side that was clicked


class Rater:
    """One person at the page, in a browser context of their own, and all the network traffic they caused."""

    def __init__(self, browser: Browser, url: str, name: str, **options: Any) -> None:
        self.url, self.name = url, name
        self.context: BrowserContext = browser.new_context(**options)
        self.context.set_default_timeout(WAIT_MS)
        self.requests: list[str] = []
        self.bodies: dict[str, str] = {}
        self.complaints: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("response", self._keep)
        self.context.on("console", lambda message: self.complaints.append(message.text))
        self.page: Page = self.context.new_page()
        self.page.goto(url)

    def _keep(self, response: Any) -> None:
        kind = response.headers.get("content-type", "")
        if kind.startswith(("text/html", "application/json")):
            key = f"{len(self.bodies)} {response.url}"
            self.bodies[key] = response.text()

    def sign_in(self) -> Rater:
        self.page.fill("#llmops-rater", self.name)
        self.page.keyboard.press("Enter")
        return self.ready()

    def ready(self) -> Rater:
        """Wait until an item is drawn and an answer to it would be taken."""
        self.page.wait_for_selector("[data-choice=a]:not([aria-disabled=true]):visible")
        return self

    def text(self, part: str) -> str:
        return self.page.eval_on_selector(f"[data-part={part}]", "e => e.textContent") or ""  # type: ignore[no-any-return]

    def shown(self) -> tuple[str, str, str]:
        """Prompt, left answer and right answer as the browser has them."""
        texts = self.page.eval_on_selector_all("[data-part=prompt] .text", "es => es.map(e => e.textContent)")
        return "\n".join(texts), self.text("text-a"), self.text("text-b")

    def answer(self, choice: str, key: str | None = None) -> Seen:
        """Answer the item on the screen by mouse, or by a key; returns what was seen once the page said saved."""
        prompt, left, right = self.shown()
        before = self.text("status")
        if key:
            self.page.keyboard.press(key)
        else:
            self.page.click(f"[data-choice={choice}]")
        chosen = {"a": left, "b": right}.get(choice)
        return Seen(self.saved(before), prompt, choice, chosen)

    def saved(self, before: str = "") -> int:
        """The number of the next "saved #n" on the page that is not the line it showed before."""
        self.page.wait_for_function(
            "before => { const line = document.querySelector('[data-part=status]').textContent;"
            " return line !== before && line.startsWith('saved #'); }",
            arg=before,
        )
        return int(self.text("status").split("#")[1].split()[0])

    def foreign(self) -> list[str]:
        """Requests that went anywhere but to the page's own server."""
        inside = (self.url + "/", "data:", "blob:" + self.url)
        return [url for url in self.requests if not url.startswith(inside)]

    def close(self) -> None:
        self.context.close()


CHOICES = {"a": "left", "b": "right", "tie": "tie", "both_bad": "both_bad", "skip": "skip"}


def sit(seat: Rater, name: str) -> Rater:
    """Another rater signs in on a page where the last one left off: loading Gradio's front end costs seconds."""
    if seat.page.is_visible("[data-do=leave]"):
        seat.page.click("[data-do=leave]")
    seat.page.wait_for_selector(".name:visible")
    seat.name = name
    return seat.sign_in()


def press(rater: Rater, *keys: str) -> None:
    """Press keys one after the other."""
    for key in keys:
        rater.page.keyboard.press(key)


def serious_faults(rater: Rater) -> list[str]:
    """What axe-core finds serious or critical in what the page itself draws."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(rater.page, context={"include": [[".desk"]]}).response["violations"]
    return [
        f"{fault['id']}: {node['html'][:200]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def require_same(workspace: Workspace, rater: str, seen: Sequence[Seen], name: str = "c") -> None:
    """Exactly the answers that were given are the rater's rows, and each prefers the text that was clicked."""
    items = {i.digest: i for i in book_of(workspace, name).items()}
    rows = {r.number: r for r in ratings_of(workspace, rater, name)}
    assert sorted(rows) == sorted(s.number for s in seen)
    for given in seen:
        row = rows[given.number]
        rated = items[row.item]
        assert (row.choice, rated.messages[-1].content) == (CHOICES[given.choice], given.prompt)
        preferred = None if row.preferred is None else rated.answers[row.preferred]
        assert preferred == given.chosen, json.dumps(row.__dict__)


def wait_until(what: Callable[[], Any], within_s: float = 60.0) -> Any:
    """The first true value of `what()`."""
    deadline = time.monotonic() + within_s
    while not (value := what()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)
    return value


ROOT = Path(__file__).parents[2]
