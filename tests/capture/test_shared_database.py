"""Two gateways on one PostgreSQL: what one served takes feedback at the other, numbered without gap."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from llmops.capture import Keyring, feedback_rows, interactions
from llmops.capture.keyring import VARIABLE, new_key
from llmops.capture.retention import forget
from llmops.db import open_database
from tests.serving.bare import Bare, bare_gateway
from tests.storage.conftest import database, postgres_uri

__all__ = ["database", "postgres_uri"]


@pytest.mark.walk
def test_feedback_reaches_what_another_gateway_served(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOPS_DATABASE_URL", database)
    monkeypatch.setenv(VARIABLE, new_key())
    with ExitStack() as stack:
        gateways: list[Bare] = []
        for i in range(2):
            (tmp_path / str(i)).mkdir()
            capture = {"sample_frac": 1.0, "personal_data": "off"}
            gateways.append(stack.enter_context(bare_gateway(tmp_path / str(i), capture=capture)))
        served = [(i, gateways[i].chat(text="Hi.", user="ada").json()["id"]) for i in (0, 1) * 8]

        def say(one: tuple[int, str]) -> int:
            there, response = one
            other = gateways[1 - there]
            body = {"response_id": response, "comment": "ok"}
            return other.client.post(f"{other.url}/v1/feedback", json=body).status_code

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(say, served)) == [201] * 16
    engine = open_database(gateways[0].workspace.database_url)
    ring = Keyring.of_environment()
    said = list(feedback_rows(engine, ring))
    assert [row.number for row in said] == list(range(1, 17))
    assert {row.served.response for row in said} == {response for _, response in served}
    assert {row.comment for row in said} == {"ok"}
    assert len(list(interactions(engine, ring))) == 16
    assert forget(engine, ring, "ada").__dict__ == {
        "n_texts": 16, "n_responses": 0, "n_feedback": 16, "n_unnamed": 16, "n_items": 0
    }  # fmt: skip
    assert list(interactions(engine, ring)) == []
