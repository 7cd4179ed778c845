"""What clients say of answers: through HTTP into the database, durable before it is acknowledged, and once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmops.capture import Keyring, ServedVotes, feedback_rows
from llmops.capture.keyring import VARIABLE, new_key
from llmops.db import open_database
from llmops.records import LiveVote
from llmops.settings import now
from tests.serving.bare import Bare, bare_gateway, table_of, target
from tests.serving.keyed import keyed_gateway


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """Keeps no texts of requests; feedback's own are encrypted."""
    root = tmp_path_factory.mktemp("feedback")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, new_key())
        with bare_gateway(root, table_of(docs="docs", other="other")) as bare:
            yield bare


def say(bare: Bare, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return bare.client.post(f"{bare.url}/v1/feedback", json=body, headers=headers)


def served(bare: Bare, model: str = "docs", **fields: Any) -> str:
    answer = bare.chat(model, **fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def stored(bare: Bare, response: str) -> list[dict[str, Any]]:
    """The rows of a response, read by SQLite itself."""
    with sqlite3.connect(bare.workspace.state / "llmops.db") as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("select * from feedback where response = ? order by number", (response,))
        return [dict(row) for row in rows]


def test_acknowledged_feedback_is_in_the_file_with_who_answered(bare: Bare) -> None:
    response = served(bare)
    answer = say(bare, response_id=response, thumb="up", score=5, comment="Just right.", correction="one two")
    assert answer.status_code == 201, answer.text
    row = stored(bare, response)[0]
    assert (row["id"], row["thumb"], row["score"]) == (answer.json()["id"], "up", 5)
    assert answer.json()["adapter"] == target("docs").digest
    database = open_database(bare.workspace.database_url)
    said = next(r for r in feedback_rows(database, Keyring.of_environment()) if r.id == row["id"])
    assert (said.comment, said.correction) == ("Just right.", "one two")
    assert (said.served.asked, said.served.adapter, said.served.n_answers) == (
        "docs",
        target("docs").digest,
        1,
    )


def test_streamed_answer_takes_feedback_under_the_id_its_chunks_carry(bare: Bare) -> None:
    chunk = bare.chat(stream=True).text.split("\n\n")[0]
    response = chunk.split('"id":"')[1].split('"')[0]
    assert say(bare, response_id=response, thumb="down").status_code == 201
    line = bare.logged()[-1]
    assert (line["response_id"], line["stream"]) == (response, True)


def test_same_feedback_again_is_the_same_feedback(bare: Bare) -> None:
    response = served(bare)
    first = say(bare, response_id=response, thumb="up", user="ada")
    again = say(bare, response_id=response, thumb="up", user="ada")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["repeated"] is True
    say(bare, response_id=response, thumb="down", user="ada")
    assert say(bare, response_id=response, thumb="up", user="ada").status_code == 201
    assert [row["thumb"] for row in stored(bare, response)] == ["up", "down", "up"]


def test_idempotency_key_stores_once_and_refuses_other_contents(bare: Bare) -> None:
    response = served(bare)
    key = {"Idempotency-Key": f"key-{response}"}
    first = say(bare, key, response_id=response, thumb="up")
    assert say(bare, response_id=response, thumb="down").status_code == 201
    again = say(bare, response_id=response, thumb="up", idempotency_key=f"key-{response}")
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    other = say(bare, key, response_id=response, thumb="down")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert len(stored(bare, response)) == 2


def test_twenty_at_once_under_one_key_are_one_row(bare: Bare) -> None:
    response = served(bare)
    body = {"response_id": response, "score": 2, "idempotency_key": f"burst-{response}"}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: say(bare, **body), range(20)))
    assert sorted(a.status_code for a in answers) == [200] * 19 + [201]
    assert len(stored(bare, response)) == 1


def live_votes(bare: Bare, name: str, since: str) -> list[LiveVote]:
    return ServedVotes(open_database(bare.workspace.database_url)).votes(name, since)


def test_what_users_say_is_a_live_vote_on_the_model_that_answered(bare: Bare) -> None:
    bare.gateway.live.table = table_of(docs="docs", other="other")
    since, first = now(), target("docs").digest
    old = served(bare, user="ada")
    bare.gateway.live.table = table_of(docs="new", other="other")
    second = target("new").digest
    new = served(bare, user="ada")
    for body in (
        {"response_id": new, "thumb": "up"},
        {"response_id": old, "score": 2},
        {"response_id": old, "comment": "So so."},  # says nothing that counts
        {"response_id": old, "correction": "better", "user": "bob"},
        {"response_id": new, "preferred_over": {"response_id": old}},
        {"response_id": served(bare, "other"), "thumb": "up"},
    ):
        assert say(bare, **body).status_code == 201
    bare.gateway.live.table = table_of(docs="docs", other="other")
    votes = live_votes(bare, "docs", since)
    assert [(v.model, v.worth, v.against) for v in votes] == [
        (second, 1.0, None), (first, 0.25, None), (first, 0.0, None), (second, 1.0, first)
    ]  # fmt: skip
    assert [v.rater == votes[0].rater for v in votes] == [True, True, False, True]
    assert [v.number for v in votes] == sorted(v.number for v in votes)
    assert live_votes(bare, "docs", "2999-01-01T00:00:00.000Z") == []


def test_changed_mind_counts_once(bare: Bare) -> None:
    since = now()
    one, two = served(bare, user="eve"), served(bare, user="eve")
    say(bare, response_id=one, preferred_over={"response_id": two}, thumb="up")
    say(bare, response_id=two, preferred_over={"response_id": one})
    say(bare, response_id=one, thumb="down")
    votes = live_votes(bare, "docs", since)
    assert [(v.worth, v.against is None) for v in votes] == [(1.0, False), (0.0, True)]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"thumb": "up"}, 400, "response_id"),
        ({"response_id": "x", "thumb": "sideways"}, 400, "thumb"),
        ({"response_id": "x", "score": 6}, 400, "score"),
        ({"response_id": "x", "score": "5"}, 400, "score"),
        ({"response_id": "x", "score": True}, 400, "score"),
        ({"response_id": "x"}, 400, None),
        ({"response_id": "x", "stars": 5}, 400, "stars"),
        ({"response_id": "x", "thumb": "up", "choice": -1}, 400, "choice"),
        ({"response_id": "a\u0000b", "thumb": "up"}, 400, "response_id"),
        ({"response_id": "x" * 129, "thumb": "up"}, 400, "response_id"),
        ({"response_id": "x", "comment": ""}, 400, "comment"),
        ({"response_id": "x", "preferred_over": {"choice": 0}}, 400, "preferred_over.response_id"),
        ({"response_id": "chatcmpl-nobody", "thumb": "up"}, 404, "response_id"),
    ],
)
def test_what_cannot_be_taken_is_named(
    bare: Bare, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = say(bare, **body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


def test_answer_that_a_response_does_not_have_is_refused(bare: Bare) -> None:
    response, pair = served(bare), served(bare, n=2)
    assert say(bare, response_id=pair, choice=1, thumb="up").status_code == 201
    refused = say(bare, response_id=response, choice=1, thumb="up")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "choice")
    same = say(bare, response_id=pair, choice=1, preferred_over={"response_id": pair, "choice": 1})
    assert (same.status_code, same.json()["error"]["param"]) == (400, "preferred_over")
    assert say(bare, response_id=pair, preferred_over={"response_id": pair, "choice": 1}).status_code == 201


def test_client_speaks_of_its_own_tenants_responses_and_an_operator_of_all(tmp_path: Path) -> None:
    with keyed_gateway(tmp_path) as keyed:
        url = f"{keyed.bare.url}/v1/feedback"
        mine = keyed.chat("docs", user="ada").json()["id"]
        theirs = keyed.chat("other", "mail", user="ada").json()["id"]

        def status(holder: str, **body: Any) -> int:
            return keyed.bare.client.post(url, json=body, headers=keyed.headers(holder)).status_code

        assert status("docs", response_id=mine, thumb="up") == 201
        assert status("all", response_id=mine, thumb="down") == 201
        assert status("docs", response_id=theirs, thumb="down") == 404
        assert status("docs", response_id=mine, preferred_over={"response_id": theirs}) == 404
        assert status("operator", response_id=theirs, thumb="up") == 201
        assert status("rater", response_id=mine, thumb="up") == 403
        assert keyed.bare.client.post(url, json={"response_id": mine, "thumb": "up"}).status_code == 401
        rows = [*stored(keyed.bare, mine), *stored(keyed.bare, theirs)]
        assert [(row["tenant"], row["thumb"]) for row in rows] == [
            ("acme", "up"), ("acme", "down"), ("bolt", "up")
        ]  # fmt: skip
        assert rows[0]["user"] != rows[2]["user"]  # another tenant's ada is another person


def test_user_is_stored_as_a_mark(bare: Bare) -> None:
    response = served(bare, user="ada.lovelace@example.org")
    say(bare, response_id=response, thumb="up")
    say(bare, response_id=response, thumb="up", user="charles.babbage@example.org")
    users = {row["user"] for row in stored(bare, response)}
    assert users == {
        Keyring.of_environment().mark("local", name)
        for name in ("ada.lovelace@example.org", "charles.babbage@example.org")
    }
    data = b"".join(path.read_bytes() for path in bare.workspace.state.glob("llmops.db*"))
    assert b"lovelace" not in data
    assert b"babbage" not in data


def test_without_a_key_thumbs_are_taken_and_texts_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with bare_gateway(tmp_path) as bare:
        response = served(bare)
        refused = say(bare, response_id=response, comment="Wrong.")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_capture_key")
        assert say(bare, response_id=response, thumb="down").status_code == 201
        assert [row["thumb"] for row in stored(bare, response)] == ["down"]


def test_feedback_that_cannot_be_stored_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else holds the database's write lock: 503, and nothing is said to be saved."""
    monkeypatch.setattr("llmops.serving.feedback_api.DURABLE_WITHIN_S", 0.3)
    with bare_gateway(tmp_path) as bare:
        response = served(bare)
        assert say(bare, response_id=response, thumb="up").status_code == 201
        with sqlite3.connect(bare.workspace.state / "llmops.db", isolation_level=None) as other:
            other.execute("begin immediate")
            held = say(bare, response_id=response, thumb="down")
            assert (held.status_code, held.json()["error"]["code"]) == (503, "not_stored")
            assert "retry-after" in held.headers
            assert bare.chat().status_code == 200  # the relay does not wait for the database
            other.execute("rollback")
        assert say(bare, response_id=response, thumb="down").status_code in (200, 201)
        assert [row["thumb"] for row in stored(bare, response)] == ["up", "down"]
