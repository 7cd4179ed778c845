"""Texts of a sample of requests: whole, redacted, encrypted at rest, bounded, never in the relay's way, and deleted."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from llmops.capture import Filter, Interaction, Keyring, captured_pairs, interactions
from llmops.capture.keyring import VARIABLE, new_key
from llmops.capture.reading import interaction
from llmops.db import open_database, writing
from llmops.errors import ConfigError
from llmops.records import OPEN
from llmops.serving.app import Gateway
from llmops.serving.request_log import Entry
from llmops.serving.requests import check
from llmops.settings import now
from llmops.tables import item_texts
from tests.in_process import llmops
from tests.serving.bare import Bare, bare_gateway, profile_of, target
from tests.serving.gateway import wait_for

ALL: dict[str, Any] = {"sample_frac": 1.0, "personal_data": "off"}
RULES = [{"name": "ticket", "pattern": r"(?i)\bT-\d{4}\b"}, {"name": "mail", "pattern": r"[\w.]+@[\w.]+\w"}]
SECRET = "the wombat sleeps in the blue drawer"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, new_key())


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    with bare_gateway(tmp_path, capture={**ALL, "redact": RULES}) as bare:
        yield bare


def captured(bare: Bare, response: str) -> Interaction:
    """The interaction once the writer has it."""
    database, ring = open_database(bare.workspace.database_url), Keyring.of_environment()
    wait_for(lambda: [one for one in interactions(database, ring) if one.response == response])
    return interaction(database, ring, response)


def bytes_at_rest(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def test_streamed_and_whole_answers_are_kept_alike(bare: Bare) -> None:
    bare.engine.words = ("To", " be,", "\n\nor", " “not”", " to be")
    whole = captured(bare, bare.chat(text="Say it.").json()["id"])
    stream = bare.chat(text="Say it.", stream=True).text
    streamed = captured(bare, re.findall('"id":"([^"]+)"', stream)[0])
    assert whole.answer == streamed.answer == "To be,\n\nor “not” to be"
    assert whole.messages == streamed.messages
    assert [m.to_turn() for m in whole.messages] == [{"role": "user", "content": "Say it."}]
    assert whole.answers[0].finish_reason == streamed.answers[0].finish_reason == "stop"
    assert (whole.adapter, whole.served.asked, whole.served.complete) == (target("docs").digest, "docs", True)


def test_tool_calls_of_a_stream_are_put_together(bare: Bare) -> None:
    pieces: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1,'}}]},
        {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "sub", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ' "b": 2}'}}]},
    ]

    async def reply(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for piece in pieces:
            event = {"id": "chatcmpl-tools", "choices": [{"index": 0, "delta": piece, "finish_reason": None}]}
            await answer.write(b"data: " + web.json_response(event).body + b"\n\n")  # type: ignore[operator]
        await answer.write(b"data: [DONE]\n\n")
        return answer

    bare.engine.reply = reply
    bare.chat(stream=True)
    calls = captured(bare, "chatcmpl-tools").answers[0].tool_calls
    assert [(c.id, c.name, c.arguments) for c in calls] == [
        ("c1", "add", '{"a": 1, "b": 2}'),
        ("c2", "sub", "{}"),
    ]


def test_no_plain_text_is_in_any_file(bare: Bare) -> None:
    bare.engine.words = (SECRET, " indeed")
    response = bare.chat(text=f"Where is it? {SECRET}").json()["id"]
    streamed = bare.chat(text=SECRET, stream=True)
    assert SECRET in streamed.text
    body = {"response_id": response, "comment": f"no: {SECRET}", "correction": SECRET}
    assert bare.client.post(f"{bare.url}/v1/feedback", json=body).status_code == 201
    assert captured(bare, response).messages[0].content.endswith(SECRET)
    assert len(bare.logged()) == 2
    data = bytes_at_rest(bare.workspace.root)
    assert response.encode() in data
    for part in (SECRET.encode(), b"wombat", b"indeed"):
        assert part not in data


def test_what_the_rules_name_is_taken_out_before_it_is_written(bare: Bare) -> None:
    bare.engine.words = ("Closed t-4711", " for ada@example.org.")
    text = "Is T-4711 of ada@example.org closed?"
    one = captured(bare, bare.chat(text=[{"type": "text", "text": text}]).json()["id"])  # type: ignore[arg-type]
    assert one.messages[0].content == "Is <ticket> of <mail> closed?"
    assert one.answer == "Closed <ticket> for <mail>."
    assert bare.engine.asked[-1]["messages"][0]["content"][0]["text"] == text  # the engine gets it as it is
    with sqlite3.connect(bare.workspace.state / "llmops.db") as connection:
        assert connection.execute("select n_redacted from captures").fetchall() == [(4,)]


@pytest.mark.walk  # the library loads torch
def test_personal_data_is_taken_out_where_the_library_is_there(tmp_path: Path) -> None:
    pytest.importorskip("presidio_analyzer")
    with bare_gateway(tmp_path, capture={"sample_frac": 1.0, "personal_data": "on"}) as bare:
        one = captured(
            bare, bare.chat(text="Write to ada@example.com or pay 4111 1111 1111 1111.").json()["id"]
        )
    assert one.messages[0].content == "Write to <EMAIL_ADDRESS> or pay <CREDIT_CARD>."


def test_text_that_a_rule_does_not_end_on_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmops.capture.redact.TIMEOUT_S", 0.05)
    rules = [{"name": "slow", "pattern": r"(?:a|a|aa)+$b"}]
    with bare_gateway(tmp_path, capture={**ALL, "redact": rules}) as bare:
        bare.chat(text="a" * 60)
        kept = bare.chat(text="short").json()["id"]
        captured(bare, kept)
        counts = bare.gateway.recorder.status()["counts"]
        metrics = bare.client.get(f"{bare.url}/metrics").text
    assert (counts["dropped: not redacted"], counts["texts"], counts["responses"]) == (1, 1, 2)
    assert 'llmops_capture_dropped_total{reason="not redacted"} 1.0' in metrics
    assert 'llmops_capture_total{kind="texts"} 1.0' in metrics


def test_sample_is_a_share_of_the_requests_and_every_lineage_is_kept(tmp_path: Path) -> None:
    with bare_gateway(tmp_path, capture={"sample_frac": 0.5, "personal_data": "off"}) as bare:
        bare.gateway.recorder._random.seed(7)
        with httpx.Client() as client:
            body = {"model": "docs", "messages": [{"role": "user", "content": "Hi."}]}
            for _ in range(60):
                client.post(f"{bare.url}/v1/chat/completions", json=body)
    with sqlite3.connect(bare.workspace.state / "llmops.db") as connection:
        n_texts = connection.execute("select count(*) from captures").fetchone()[0]
        assert connection.execute("select count(*) from responses").fetchone() == (60,)
    assert 15 < n_texts < 45  # beyond +-3.9 standard deviations of a fair coin


def test_what_has_no_room_is_dropped_and_counted(tmp_path: Path) -> None:
    with bare_gateway(tmp_path, capture={**ALL, "max_text_bytes": 1024}) as bare:
        bare.engine.words = ("x" * 400,) * 4
        for stream in (False, True):
            assert bare.chat(stream=stream).status_code == 200
        bare.engine.words = ("short",)
        assert bare.chat(text="y" * 2000).status_code == 200
        captured(bare, bare.chat().json()["id"])
        assert bare.gateway.recorder.status()["counts"] == {
            "dropped: too long": 3, "responses": 4, "texts": 1
        }  # fmt: skip


def test_relay_never_waits_for_the_database_and_drops_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmops.serving.capture_writer.MAX_WAITING", 5)
    with bare_gateway(tmp_path, capture=ALL) as bare:
        captured(bare, bare.chat().json()["id"])
        with sqlite3.connect(bare.workspace.state / "llmops.db", isolation_level=None) as other:
            other.execute("begin immediate")
            answers = [bare.chat() for _ in range(12)]
            assert [answer.status_code for answer in answers] == [200] * 12
            counts = bare.gateway.recorder.status()["counts"]
            other.execute("rollback")
    assert counts["responses"] == 1
    # One batch is in the writer's hands; behind it there is room for five.
    assert 1 <= counts["dropped: queue full"] <= 7
    kept = bare.gateway.recorder.status()["counts"]
    assert kept["responses"] + kept["dropped: queue full"] == 13


def test_answer_whose_client_left_is_not_whole(bare: Bare) -> None:
    bare.engine.chunk_s = 0.05
    bare.engine.words = ("word ",) * 200
    body = {"model": "docs", "messages": [{"role": "user", "content": "Hi."}], "stream": True}
    with httpx.stream("POST", f"{bare.url}/v1/chat/completions", json=body) as answer:
        first = next(answer.iter_lines())
    one = captured(bare, re.findall('"id":"([^"]+)"', first)[0])
    assert not one.served.complete
    assert one.answer.startswith("word")
    assert one.answers[0].finish_reason is None


def test_several_answers_of_one_request_are_all_kept(bare: Bare) -> None:
    async def reply(request: web.Request, body: dict[str, Any]) -> web.Response:
        choices = [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for i, text in enumerate(("heads", "tails"))
        ]
        return web.json_response({"id": "chatcmpl-two", "model": body["model"], "choices": choices})

    bare.engine.reply = reply
    bare.chat(n=2)
    one = captured(bare, "chatcmpl-two")
    assert [answer.content for answer in one.answers] == ["heads", "tails"]
    database = open_database(bare.workspace.database_url)
    pair = next(captured_pairs(database, Keyring.of_environment()))
    assert (pair.answers, pair.systems) == (("heads", "tails"), (target("docs").digest,) * 2)


def test_shadow_and_what_was_shown_are_a_pair_and_a_shadow_takes_no_feedback(bare: Bare) -> None:
    shown = bare.chat(text="Which?").json()["id"]
    first = captured(bare, shown)
    recorder = bare.gateway.recorder

    async def shadow() -> None:
        body = {"model": "docs", "messages": [{"role": "user", "content": "Which?"}]}
        call = check(body, True, bare.gateway.profile.limits)
        answer = b'{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"neither"}}]}'
        seen = Entry("r", "/v1/chat/completions", time.perf_counter(), response_id=shown, captured=True)
        unseen = Entry("r", "/v1/chat/completions", 0.0, response_id="chatcmpl-shadow", arm="shadow")
        unseen.answered_by, unseen.tenant = target("new").digest, OPEN.tenant
        recorder.add_shadow(seen, unseen, call, answer)

    bare.run(shadow())
    captured(bare, "chatcmpl-shadow")
    database, ring = open_database(bare.workspace.database_url), Keyring.of_environment()
    systems = (target("new").digest, target("docs").digest)
    pairs = list(captured_pairs(database, ring, Filter(asked="docs"), systems))
    assert [(p.answers, p.responses) for p in pairs] == [
        (("neither", first.answer), ("chatcmpl-shadow", shown))
    ]
    assert pairs[0].messages == first.messages
    said = bare.client.post(f"{bare.url}/v1/feedback", json={"response_id": "chatcmpl-shadow", "thumb": "up"})
    assert said.status_code == 404


def test_capture_without_a_key_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    (tmp_path / "profile.yaml").write_text(
        "base_model: none\nengine: {kind: transformers}\nport: 0\ncapture: {sample_frac: 0.1}\n"
    )
    done = llmops(tmp_path, "serve", "profile.yaml")
    assert done.code == 2
    assert "LLMOPS_CAPTURE_KEY is not set; make one with `llmops capture key`" in done.err
    monkeypatch.setenv(VARIABLE, "bm90IGEga2V5")
    done = llmops(tmp_path, "serve", "profile.yaml")
    assert (done.code, "bm90" in done.err) == (2, False)
    assert "is not 32 bytes in base64" in done.err


def test_plain_texts_are_for_loopback_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with bare_gateway(tmp_path, capture={**ALL, "encryption": "none"}) as bare:
        assert captured(bare, bare.chat(text=SECRET).json()["id"]).messages[0].content == SECRET
        assert bare.gateway.recorder.status()["key"] == "none"
    with pytest.raises(ValueError, match="on a loopback address alone, not on"):
        profile_of(host="10.0.0.5", capture={**ALL, "encryption": "none"})


@pytest.mark.parametrize(
    ("pattern", "said"), [("(", "no regular expression"), ("a*", "matches the empty text")]
)
def test_rule_that_is_none_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        profile_of(capture={**ALL, "redact": [{"name": "bad", "pattern": pattern}]})


def test_presidio_that_is_asked_for_and_not_there_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmops.data.quality.pii.installed", lambda: False)
    (tmp_path / "llmops.yaml").write_text("name: test\n")
    from llmops.settings import find_workspace

    with pytest.raises(ConfigError, match="personal_data: needs presidio-analyzer"):
        Gateway(profile_of(capture={"sample_frac": 1.0, "personal_data": "on"}), find_workspace(tmp_path))


def test_old_key_reads_and_the_new_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = new_key(), new_key()
    monkeypatch.setenv(VARIABLE, old)
    with bare_gateway(tmp_path, capture=ALL) as bare:
        first = captured(bare, bare.chat(text="before").json()["id"])
    monkeypatch.setenv(VARIABLE, f"{new},{old}")
    with bare_gateway(tmp_path, capture=ALL) as bare:
        second = captured(bare, bare.chat(text="after").json()["id"])
        assert captured(bare, first.response).messages[0].content == "before"
    monkeypatch.setenv(VARIABLE, new)
    found = list(interactions(open_database(bare.workspace.database_url), Keyring.of_environment()))
    assert {one.response: (one.problem or "read").partition(":")[0] for one in found} == {
        first.response: "no key", second.response: "read"
    }  # fmt: skip
    done = llmops(tmp_path, "capture", "show", first.response)
    assert done.code == 2
    assert "which is not in LLMOPS_CAPTURE_KEY" in done.err


def test_text_moved_to_another_row_is_not_read(bare: Bare) -> None:
    one, two = (captured(bare, bare.chat(text=text).json()["id"]) for text in ("one", "two"))
    with sqlite3.connect(bare.workspace.state / "llmops.db") as connection:
        connection.execute(
            "update captures set payload = (select payload from captures where response = ?) where response = ?",
            (one.response, two.response),
        )
    done = llmops(bare.workspace.root, "capture", "show", two.response)
    assert done.code == 4
    assert "was altered or belongs to another row" in done.err


def test_what_is_older_than_the_profile_keeps_is_gone_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    capture = {**ALL, "encryption": "none", "keep_days": 10, "keep_lineage_days": 100}
    with bare_gateway(tmp_path, capture=capture) as bare:
        ids = [bare.chat(text=f"{word} {SECRET}").json()["id"] for word in ("new", "old", "ancient")]
        for response in ids:
            captured(bare, response)
            bare.client.post(
                f"{bare.url}/v1/feedback", json={"response_id": response, "comment": f"c {SECRET}"}
            )
    database = tmp_path / ".llmops" / "llmops.db"
    assert bytes_at_rest(tmp_path).count(SECRET.encode()) >= 6
    with sqlite3.connect(database) as connection:
        for response, days in zip(ids[1:], (11, 101), strict=True):
            at = (
                (datetime.now(UTC) - timedelta(days=days))
                .isoformat(timespec="milliseconds")
                .replace("+00:00", "Z")
            )
            connection.execute("update responses set at = ? where id = ?", (at, response))
            connection.execute("update captures set at = ? where response = ?", (at, response))
    (tmp_path / "profile.yaml").write_text(
        "base_model: none\nengine: {kind: transformers}\ncapture: {keep_days: 10, keep_lineage_days: 100}\n"
    )
    done = llmops(tmp_path, "capture", "purge", "profile.yaml")
    assert done.out == "deleted 2 texts, 1 responses, 1 feedback\n"
    data = bytes_at_rest(tmp_path / ".llmops")
    assert f"new {SECRET}".encode() in data
    assert f"old {SECRET}".encode() not in data
    assert f"ancient {SECRET}".encode() not in data
    with sqlite3.connect(database) as connection:
        assert {row[0] for row in connection.execute("select id from responses")} == set(ids[:2])
        body = connection.execute("select body from events where kind = 'capture.purged'").fetchone()[0]
    assert body == '{"n_feedback":1,"n_items":0,"n_responses":1,"n_texts":2,"n_unnamed":0}'


def test_gateway_deletes_by_itself_what_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bare_gateway(tmp_path, capture={**ALL, "keep_days": 1}) as bare:
        response = bare.chat().json()["id"]
        captured(bare, response)
    with sqlite3.connect(tmp_path / ".llmops" / "llmops.db") as connection:
        connection.execute("update captures set at = '2020-01-01T00:00:00.000Z'")
    with bare_gateway(tmp_path, capture={**ALL, "keep_days": 1}) as bare:
        database = open_database(bare.workspace.database_url)
        wait_for(lambda: not list(interactions(database, Keyring.of_environment())))


def test_forgotten_person_leaves_no_text_and_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain, so that the file shows what is left; every answer stays attributed to its model."""
    monkeypatch.delenv(VARIABLE)
    with bare_gateway(tmp_path, capture={**ALL, "encryption": "none"}) as bare:
        bare.engine.words = ("kept answer",)
        own = bare.chat(text=f"own {SECRET}", user="ada").json()["id"]
        other = bare.chat(text="others text", user="bob").json()["id"]
        for response, user in ((own, "bob"), (other, "ada"), (other, "bob")):
            captured(bare, response)
            body = {"response_id": response, "user": user, "score": 1, "comment": f"{user} on {response}"}
            assert bare.client.post(f"{bare.url}/v1/feedback", json=body).status_code == 201
    mark = Keyring().mark("local", "ada").encode()
    shown = {"campaign": "c" * 64, "item": "i" * 64, "place": 0, "owner": mark.decode(), "at": now()}
    with writing(
        open_database(bare.workspace.database_url)
    ) as connection:  # as a campaign on captures has it
        connection.execute(item_texts.insert().values(**shown, body=f"own {SECRET}"))
    assert mark in bytes_at_rest(tmp_path / ".llmops")
    done = llmops(tmp_path, "capture", "forget", "--user", "ada")
    assert done.out == "deleted 1 texts, 1 feedback, 1 rated items; 1 responses unnamed\n"
    data = bytes_at_rest(tmp_path / ".llmops")
    for gone in (SECRET.encode(), mark, f"bob on {own}".encode(), f"ada on {other}".encode()):
        assert gone not in data
    for left in (b"others text", f"bob on {other}".encode()):
        assert left in data
    with sqlite3.connect(tmp_path / ".llmops" / "llmops.db") as connection:
        assert connection.execute("select adapter, user from responses where id = ?", (own,)).fetchall() == [
            (target("docs").digest, None)
        ]
        scores = connection.execute("select response, score, payload is null from feedback order by number")
        assert scores.fetchall() == [(own, 1, 1), (other, 1, 0)]
    assert llmops(tmp_path, "capture", "forget", "--user", "ada").out.startswith(
        "deleted 0 texts, 0 feedback, 0"
    )


def test_writer_ends_with_everything_written(tmp_path: Path) -> None:
    with bare_gateway(tmp_path, capture=ALL) as bare:

        async def burst() -> None:
            async with httpx.AsyncClient() as client:
                body = {"model": "docs", "messages": [{"role": "user", "content": "Hi."}]}
                await asyncio.gather(
                    *(client.post(f"{bare.url}/v1/chat/completions", json=body) for _ in range(40))
                )

        asyncio.run(burst())
    with sqlite3.connect(bare.workspace.state / "llmops.db") as connection:
        assert connection.execute("select count(*) from captures").fetchone() == (40,)
