"""A teacher behind an endpoint: a real HTTP server answers, is busy, breaks down, and is asked no more than needed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from llmops.cli.commands import app
from llmops.errors import BadRequest, ConfigError, CouldNotRun
from llmops.records import DatasetSnapshot
from llmops.registry.adapters import Registry
from tests.train.judging import set_up_rows
from tests.train.support import PAIRS, Bench


class Server(ThreadingHTTPServer):
    """An OpenAI endpoint that upper-cases what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.busy = 0  # requests that are answered 503 first
        self.limit = 10**6  # answers after which every request fails
        self.n_answered = 0
        self.special: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append(body)
            server.keys.append(self.headers.get("Authorization"))
            if body["model"] == "nobody":
                return self._say(404, {"error": {"message": "no such model"}})
            if server.busy or server.n_answered >= server.limit:
                server.busy = max(0, server.busy - 1)
                return self._say(503, {"error": {"message": "come back later"}})
            server.n_answered += 1
        question = body["messages"][-1]["content"]
        choice = {"message": {"content": question.upper()}, "finish_reason": "stop"}
        return self._say(200, {"choices": [choice | server.special.get(question, {})]})

    def _say(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    """The endpoint, running."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def _method(url: str, **changes: Any) -> dict[str, Any]:
    teacher = {"kind": "endpoint", "url": url, "model": "sage", "concurrency": 1, "retry_s": 0.0}
    return {
        "kind": "distill",
        "teacher": teacher | {"decoding": {"temperature": 0, "max_tokens": 50}} | changes,
    }


def test_answers_become_completions_and_are_asked_for_once(bench: Bench, server: Server) -> None:
    server.busy = 2
    method = _method(
        server.url, retry_s=30.0, concurrency=3, decoding={"temperature": 0.5, "max_tokens": 9, "seed": 4}
    )
    _, session, _ = set_up_rows(bench, method, system="Be brief.", held_out_frac=0)
    texts = [
        bytes(token for token in e.encoded.input_ids if token < 256).decode() for e in session.examples.train
    ]
    assert len(texts) == len(PAIRS)
    for question, _answer in PAIRS:
        assert any(question.upper() in text for text in texts)
    assert len(server.asked) == len(PAIRS) + 2
    body = server.asked[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["seed"], "stop" in body) == (0.5, 9, 4, False)
    n = len(server.asked)
    set_up_rows(bench, method, system="Be brief.", held_out_frac=0)
    assert len(server.asked) == n
    other = _method(server.url, decoding={"temperature": 0.6, "max_tokens": 9})
    set_up_rows(bench, other, held_out_frac=0)
    assert len(server.asked) == n + len(PAIRS)


def test_endpoint_that_breaks_down_is_one_error_and_the_next_run_goes_on(
    bench: Bench, server: Server
) -> None:
    server.limit = 2
    with pytest.raises(CouldNotRun) as caught:
        set_up_rows(bench, _method(server.url))
    said = str(caught.value)
    assert said.startswith(f"teacher sage at {server.url}: does not answer (HTTP 503: come back later")
    assert "the 2 of 4 answers it gave are kept" in said
    (kept,) = (bench.workspace.state / "teacher").glob("*.jsonl")
    with kept.open("a") as file:
        file.write('{"prompt": "ab')  # as a machine that stopped leaves it
    server.limit, before = 10**6, len(server.asked)
    _, session, _ = set_up_rows(bench, _method(server.url))
    assert len(server.asked) == before + 2
    assert session.examples.n_rows["train"] == 4


def test_endpoint_that_is_not_there_is_told_with_its_address(bench: Bench) -> None:
    with pytest.raises(
        CouldNotRun, match=r"teacher sage at http://127.0.0.1:9/v1: does not answer .*start it, and run"
    ):
        set_up_rows(bench, _method("http://127.0.0.1:9/v1"))


def test_refusal_of_the_endpoint_is_told_in_its_words(bench: Bench, server: Server) -> None:
    with pytest.raises(
        BadRequest, match=r"teacher nobody at .*: HTTP 404: no such model; correct method.teacher"
    ):
        set_up_rows(bench, _method(server.url, model="nobody", retry_s=30.0))
    assert len(server.asked) == 1


def test_key_is_sent_from_the_environment_and_written_nowhere(
    bench: Bench, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = _method(server.url, api_key_env="SAGE_KEY")
    monkeypatch.delenv("SAGE_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"environment variable SAGE_KEY .* is not set"):
        set_up_rows(bench, method)
    monkeypatch.setenv("SAGE_KEY", "sk-hidden")
    recipe, _, _ = set_up_rows(bench, method)
    assert set(server.keys) == {"Bearer sk-hidden"}
    assert "sk-hidden" not in recipe.model_dump_json()
    files = [p for p in bench.root.rglob("*") if p.is_file()]
    assert not [p for p in files if b"sk-hidden" in p.read_bytes()]


def test_command_line_trains_on_the_answers_and_lineage_names_the_teacher(
    bench: Bench, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer is cut and one is empty: both rows are dropped by reason, within the budget."""
    server.special = {PAIRS[0][0]: {"finish_reason": "length"}, PAIRS[1][0]: {"message": {"content": " "}}}
    monkeypatch.chdir(bench.root)
    path = bench.recipe(name="pupil", method=_method(server.url), n_steps=3, drop_budget_frac=0.5)
    done = CliRunner().invoke(app, ["finetune", str(path), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    lineage = json.loads(done.stdout)["lineage"]
    assert (lineage["n_rows"]["train"], lineage["n_rows"]["dropped"]) == (2, 2)
    assert (lineage["n_rows"]["dropped: cut"], lineage["n_rows"]["dropped: empty answer"]) == (1, 1)
    store = Registry.of(bench.workspace).store
    snapshot = store.get_record(DatasetSnapshot, lineage["dataset"])
    assert snapshot.name == "pupil-teacher"
    assert snapshot.origin.startswith(f"answers of sage at {server.url} (temperature 0.0, max_tokens 50, ")
    rows = (store.verify("dataset", snapshot.artifact) / "train.jsonl").read_text()
    assert PAIRS[2][0].upper() in rows
    assert PAIRS[2][1] not in rows
