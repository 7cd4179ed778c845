"""Where the page listens: for other machines only when raters sign in, and over HTTPS when it has a certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest

from llmops.auth import Keys, NewKey
from llmops.errors import ConfigError
from llmops.feedback.address import Address, require_guarded
from llmops.settings import Workspace
from tests import in_process
from tests.feedback.browser import plain_items, put_campaign, rater_id, ratings_of, serving_page
from tests.serving.test_front import certificate

__all__ = ["certificate"]

PASSWORD = "correct horse battery"


def test_other_machines_reach_no_page_that_nobody_could_sign_in_to(workspace: Workspace) -> None:
    put_campaign(workspace, plain_items(1))
    keys = Keys.of(workspace)
    keys.create(NewKey("app", "client"))  # opens the gateway, not the page
    revoked = keys.create(NewKey("left", "rater")).key
    keys.revoke(revoked.id)
    for host in ("0.0.0.0", "::", "192.0.2.7", "box.example"):
        done = in_process.llmops(workspace.root, "feedback", "ui", "--host", host, "--port", "0")
        assert done.code == ConfigError.exit_code
        assert f"nobody has a key or password to sign in with (found {host!r})" in done.err
    keys.create(NewKey("Ann", "rater"))
    require_guarded(Address(host="0.0.0.0"), keys)


def test_a_certificate_that_cannot_be_used_is_said_before_anything_is_served(
    workspace: Workspace, certificate: tuple[Path, Path]
) -> None:
    put_campaign(workspace, plain_items(1))
    ui = ("feedback", "ui", "--port", "0", "--tls-certificate", str(certificate[0]))
    done = in_process.llmops(workspace.root, *ui)
    assert (done.code, "HTTPS needs both" in done.err) == (ConfigError.exit_code, True)
    done = in_process.llmops(workspace.root, *ui, "--tls-key", str(certificate[0]))
    assert (done.code, "give a certificate and its key as PEM" in done.err) == (ConfigError.exit_code, True)


def test_a_page_for_other_machines_takes_ratings_over_https_from_who_signed_in_alone(
    workspace: Workspace, certificate: tuple[Path, Path]
) -> None:
    put_campaign(workspace, plain_items(2))
    Keys.of(workspace).create(NewKey("Ann", "rater", password=PASSWORD))
    at = Address(host="0.0.0.0", certificate=certificate[0], key=certificate[1])
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    with serving_page(workspace, at=at) as served:
        assert served.url.startswith("https://0.0.0.0:")
        url = served.url.replace("0.0.0.0", "127.0.0.1")
        with httpx.Client(base_url=url, verify=trusting, timeout=60) as client:
            part = next(p["id"] for p in client.get("/config").json()["components"] if p["type"] == "html")

            def call(function: str, **data: str) -> dict[str, object]:
                body = {"data": data, "component_id": part, "fn_name": function, "session_hash": "s"}
                found: dict[str, object] = client.post("/gradio_api/component_server/", json=body).json()
                return found

            assert call("next_item", rater="Ann")["sign_in"] is True
            opened = client.post("/session", json={"name": "Ann", "password": PASSWORD})
            assert "Secure" in opened.headers["set-cookie"]
            shown = call("next_item")["item"]
            assert isinstance(shown, dict)
            assert call("rate_item", showing=shown["showing"], choice="a")["saved"] == 1
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"), timeout=60)
    assert [row.rater for row in ratings_of(workspace)] == [rater_id(workspace, "Ann")]
