"""A gateway killed with -9 under load: every feedback it acknowledged is there afterwards."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from llmops.capture.keyring import VARIABLE, new_key
from tests.serving.gateway import wait_for

GATEWAYS = """
import os, sys, time, uuid
from pathlib import Path
from aiohttp import web
from tests.serving.bare import bare_gateway
async def reply(request, body):
    message = {"role": "assistant", "content": "four"}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    return web.json_response({"id": "chatcmpl-" + uuid.uuid4().hex, "model": body["model"], "choices": choices})
for root in sys.stdin:
    if os.fork() == 0:
        capture = {"sample_frac": 1.0, "personal_data": "off"}
        with bare_gateway(Path(root.strip()), capture=capture) as bare:
            bare.engine.reply = reply
            print(os.getpid(), bare.url, flush=True)
            time.sleep(600)
    os.wait()
"""
"""Starts a gateway in a process of its own for every workspace it is told, one after another."""


def load_until_killed(gateways: subprocess.Popen[str], root: Path, n: int) -> dict[str, str]:
    """Serve and rate from four clients, kill the gateway after n acknowledged feedback; all it acknowledged, by id."""
    assert gateways.stdin is not None
    assert gateways.stdout is not None
    print(root, file=gateways.stdin, flush=True)
    pid, url = gateways.stdout.readline().split()
    acknowledged: dict[str, str] = {}
    killed = threading.Event()

    def client(number: int) -> None:
        ask = {
            "model": "docs",
            "messages": [{"role": "user", "content": "What is two and two?"}],
            "user": "ada",
        }
        with httpx.Client(base_url=url, timeout=10) as http:
            while not killed.is_set():
                try:
                    response = http.post("/v1/chat/completions", json=ask).json()["id"]
                    body = {"response_id": response, "score": 1 + number, "comment": "as it should be"}
                    said = http.post("/v1/feedback", json=body)
                except (httpx.HTTPError, ValueError):
                    return
                if said.status_code == 201:
                    acknowledged[said.json()["id"]] = response

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, i) for i in range(4)]
        wait_for(lambda: len(acknowledged) >= n)
        os.kill(int(pid), signal.SIGKILL)
        killed.set()
        for one in clients:
            one.result(30)
    return acknowledged


def check_kills(root: Path, n_kills: int) -> None:
    moments = random.Random(0)
    acknowledged: dict[str, str] = {}
    with subprocess.Popen(
        [sys.executable, "-c", GATEWAYS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, start_new_session=True,
    ) as gateways:  # fmt: skip
        try:
            for _ in range(n_kills):
                acknowledged |= load_until_killed(gateways, root, moments.randint(1, 40))
        finally:
            os.killpg(gateways.pid, signal.SIGKILL)
    with closing(sqlite3.connect(root / ".llmops" / "llmops.db")) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        stored = dict(connection.execute("select id, response from feedback"))
        known = {row[0] for row in connection.execute("select id from responses")}
        texts = {row[0] for row in connection.execute("select response from captures")}
    assert {key: stored.get(key) for key in acknowledged} == acknowledged
    assert set(stored.values()) <= known  # whose lineage went down with the same transaction
    assert set(acknowledged.values()) <= texts


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, new_key())
    return tmp_path


def test_three_kills_under_load_lose_no_acknowledged_feedback(root: Path) -> None:
    check_kills(root, 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_under_load_lose_no_acknowledged_feedback(root: Path) -> None:
    check_kills(root, 50)
