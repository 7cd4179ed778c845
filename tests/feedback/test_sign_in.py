"""Signing in: by key or by name and password, once the workspace has keys; who may rate, and who sees figures."""

from __future__ import annotations

import asyncio
import time
from contextvars import copy_context
from typing import Any

import httpx
import pytest

from llmops.auth import Keys, NewKey
from llmops.feedback.guard import MOST_BYTES, Guard
from llmops.feedback.page import open_desk
from llmops.feedback.sign_in import COOKIE, presented
from llmops.settings import Workspace
from tests.feedback.browser import plain_items, put_campaign, rater_id, ratings_of

PASSWORD = "correct horse battery"


class Page:
    """The guard in front of a desk without Gradio: what it passes on is answered by the desk's call of that name."""

    def __init__(self, workspace: Workspace) -> None:
        self.desk, self.door, _ = open_desk(workspace, None)
        self.passed: list[str] = []
        self.token = ""  # a rater's
        transport = httpx.ASGITransport(app=Guard(self._answer, self.door))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed.append(scope["path"])
        body = httpx.Response(200, content=(await receive())["body"]).json()
        reply = getattr(self.desk, body["fn_name"])(body["data"])
        answer = httpx.Response(200, json=reply)
        await send({"type": "http.response.start", "status": 200, "headers": answer.headers.raw})
        await send({"type": "http.response.body", "body": answer.content})

    def call(self, function: str, **data: Any) -> dict[str, Any]:
        body = {"fn_name": function, "data": data}
        reply = asyncio.run(self.client.post("/gradio_api/component_server/", json=body))
        found: dict[str, Any] = reply.json()
        return found

    def session(self, method: str = "POST", **said: Any) -> httpx.Response:
        return asyncio.run(self.client.request(method, "/session", json=said))


@pytest.fixture
def keys(workspace: Workspace) -> Keys:
    put_campaign(workspace, plain_items(3), votes=9)
    return Keys.of(workspace)


@pytest.fixture
def page(workspace: Workspace, keys: Keys) -> Page:
    page = Page(workspace)
    page.token = keys.create(NewKey("Ann", "rater")).token or ""
    return page


def test_without_keys_a_name_is_enough_and_only_a_salted_number_stands_with_the_rating(
    workspace: Workspace, keys: Keys
) -> None:
    page = Page(workspace)
    assert page.call("enter") == {"accounts": False, "signed_in": False}
    showing = page.call("next_item", rater="Ann")["item"]["showing"]
    page.call("rate_item", rater="Ann", showing=showing, choice="a")
    (row,) = ratings_of(workspace)
    assert row.rater == rater_id(workspace, "Ann") == keys.pseudonym("ann")
    assert b"Ann" not in workspace.state.joinpath("llmops.db").read_bytes()


def test_with_keys_no_call_is_answered_before_signing_in(page: Page) -> None:
    assert page.call("enter") == {"accounts": True, "signed_in": False}
    for function in ("next_item", "rate_item", "last_item", "undo_item", "ask_both", "numbers"):
        reply = page.call(function, rater="Ann")
        assert reply == {
            "error": "page: your session has ended; sign in again",
            "sign_in": True,
            "accounts": True,
        }


def test_a_password_opens_a_session_that_outlives_the_page(
    workspace: Workspace, page: Page, keys: Keys
) -> None:
    keys.create(NewKey("Ann", "rater", password=PASSWORD))
    wrong = page.session(name="Ann", password="wrong horse battery")
    assert wrong.json()["error"].startswith("sign-in: no live key or password like that")
    assert "set-cookie" not in wrong.headers
    cookie = page.session(name=" Ann ", password=PASSWORD).headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Path=/"))
    assert PASSWORD not in cookie
    shown = page.call("next_item", rater="somebody else")
    assert (shown["rater"], shown["about"]["admin"]) == ("Ann", False)
    again = Page(workspace)
    again.client.cookies = page.client.cookies
    assert again.call("next_item")["item"] == shown["item"]
    again.call("rate_item", showing=shown["item"]["showing"], choice="b")
    assert [r.rater for r in ratings_of(workspace)] == [rater_id(workspace, "ann")]
    assert page.session("DELETE").status_code == 200
    assert page.call("enter") == {"accounts": True, "signed_in": False}


def test_a_key_opens_a_session_until_it_is_revoked(page: Page, keys: Keys) -> None:
    made = keys.create(NewKey("Bob", "rater"))
    assert page.session(key=made.token).json() == {}
    assert page.call("next_item")["rater"] == "Bob"
    keys.revoke(made.key.id)
    assert page.call("next_item")["sign_in"] is True
    assert "error" in page.session(key=made.token).json()


def test_a_clients_key_opens_no_rating_page(page: Page, keys: Keys) -> None:
    made = keys.create(NewKey("app", "client"))
    assert "a key of role client opens no rating page" in page.session(key=made.token).json()["error"]
    assert page.call("next_item")["sign_in"] is True


def test_figures_are_for_operators_and_admins_alone(page: Page, keys: Keys) -> None:
    page.session(key=page.token)
    assert page.call("numbers")["error"].startswith(
        "admin: these figures are for keys of role operator or admin"
    )
    for role in ("operator", "admin"):
        page.session(key=keys.create(NewKey(f"boss {role}", role)).token)
        assert page.call("next_item")["about"]["admin"] is True
        assert "Left-side bias" in page.call("numbers")["figures"]


@pytest.mark.parametrize("change", ["another key", "a later end", "another signature", "no form", "too old"])
def test_a_forged_or_old_session_opens_nothing(
    page: Page, keys: Keys, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.session(key=page.token)
    key, until, mac = page.client.cookies[COOKIE].split(".")
    forged = {
        "another key": f"{keys.create(NewKey('Eve', 'admin')).key.id}.{until}.{mac}",
        "a later end": f"{key}.{int(until) + 1}.{mac}",
        "another signature": f"{key}.{until}.{'0' * 64}",
        "no form": "...;=;",
        "too old": f"{key}.{until}.{mac}",
    }[change]
    if change == "too old":
        later = time.time() + 13 * 3600
        monkeypatch.setattr("llmops.feedback.sign_in.time.time", lambda: later)

    def opened(value: str) -> bool:
        presented.set(f"{COOKIE}={value}")
        return page.door.signed_in()

    assert not copy_context().run(opened, forged)


def test_wrong_passwords_end_in_a_pause_that_the_right_one_waits_for_too(
    page: Page, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmops.auth.keys.MAX_FAILURES", 2)
    keys.create(NewKey("Ann", "rater", password=PASSWORD))
    for _ in range(2):
        page.session(name="Ann", password="x")
    assert "too many wrong passwords" in page.session(name="Ann", password=PASSWORD).json()["error"]


def test_calls_from_elsewhere_or_too_large_never_reach_the_page(page: Page) -> None:
    async def statuses() -> list[int]:
        elsewhere = {"sec-fetch-site": "cross-site"}
        found = [
            await page.client.post("/gradio_api/component_server/", json={}, headers=elsewhere),
            await page.client.post("/session", json={}, headers=elsewhere),
            await page.client.post("/gradio_api/upload", json={}),
            await page.client.post("/session", content=b"x" * (MOST_BYTES["/session"] + 1)),
            await page.client.post("/session", content=b"no json"),
        ]
        return [reply.status_code for reply in found]

    assert asyncio.run(statuses()) == [403, 403, 403, 413, 400]
    assert page.passed == []
