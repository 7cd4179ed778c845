"""Two real engines under one gateway, by the command line alone: measured beside, switched to, back, and retired."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.loop import DATA, GATE, NAME, PROFILE, RECIPE, SUITE, Loop
from tests.tiny import build_tiny_model

pytestmark = [pytest.mark.walk, pytest.mark.timeout(600)]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A champion in fp32, served, and a profile of the same base in bfloat16."""
    loop = Loop(tmp_path, tmp_path / "cache")
    base = build_tiny_model(tmp_path / "base", max_len=512)
    (tmp_path / "llmops.yaml").write_text("name: switch\n")
    loop.write_rows()
    loop.write("data.yaml", DATA)
    common = {"base": base, "r": 16, "alpha": 32, "learning_rate": "1e-2", "tracking": "none"}
    loop.write("recipe.yaml", RECIPE, n_steps=60, seed=0, **common)
    loop.write("serve.yaml", PROFILE, base=base)
    loop.write("second.yaml", PROFILE.replace("float32", "bfloat16"), base=base)
    loop.write("suite.yaml", SUITE, n_cases=24)
    loop.write("gate.yaml", GATE, kind="superior", bound="by: 0")
    for command in (
        ("base", "fetch", str(base)), ("data", "build", "data.yaml"), ("finetune", "recipe.yaml"),
        ("serve", "serve.yaml", "--detach"), ("eval", "suite.yaml", "--gate", "gate.yaml"),
        ("gate", "check", "gate.yaml"), ("release", "promote", NAME),
    ):  # fmt: skip
        loop.llmops(*command)
    try:
        yield loop
    finally:
        loop.llmops("stop")


@contextmanager
def clients(url: str, seen: Counter[tuple[int, str]]) -> Iterator[None]:
    """Two clients that ask all the time, one of them streaming; counts (status, engine's digest)."""
    stop = threading.Event()

    def ask(stream: bool) -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                body = {"model": NAME, "messages": [{"role": "user", "content": "add 5"}], "max_tokens": 8}
                answer = client.post(
                    f"{url}/v1/chat/completions", json=body | {"stream": stream, "temperature": 0}
                )
                whole = not stream or "[DONE]" in answer.text
                seen[answer.status_code if whole else 0, answer.headers.get("x-llmops-engine", "")[:12]] += 1
                time.sleep(0.05)

    threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _engine(loop: Loop) -> dict[str, str]:
    found: dict[str, str] = json.loads((loop.root / ".llmops/serve.json").read_text())["engine"]
    return found


def test_engine_changes_under_a_running_gateway_on_what_was_measured_on_it(loop: Loop) -> None:
    champion = json.loads(loop.llmops("status", "--json").out)["names"][0]["champion"]
    pid = json.loads((loop.root / ".llmops/serve.json").read_text())["pid"]
    seen: Counter[tuple[int, str]] = Counter()
    with clients(loop.url(), seen):
        started = loop.llmops("engine", "start", "second.yaml").out
        assert f"proved   {champion}" in started
        refused = loop.llmops("engine", "switch", check=False)
        assert refused.code == 4
        assert (
            "docs: measured on dtype=float32, this engine has dtype=bfloat16; run `llmops eval" in refused.err
        )
        evaluated = loop.llmops("eval", "suite.yaml", "--adapter", champion, "--engine", "green").out
        assert " bfloat16 on cpu" in evaluated
        assert _engine(loop)["dtype"] == "float32"
        loop.llmops("gate", "check", "gate.yaml", "--adapter", champion)
        assert f"docs -> {champion}" in loop.llmops("engine", "switch").out
        assert _engine(loop)["dtype"] == "bfloat16"
        loop.llmops("engine", "back")
        assert _engine(loop)["dtype"] == "float32"
        loop.llmops("engine", "switch")
        loop.llmops("engine", "retire")
    assert {status for status, _ in seen} == {200}
    assert len({engine for _, engine in seen}) == 2
    (left,) = json.loads(loop.llmops("engine", "status", "--json").out)
    assert (left["serves"], left["engine"]["dtype"], left["adapters"]) == (True, "bfloat16", [champion])
    assert json.loads((loop.root / ".llmops/serve.json").read_text())["pid"] == pid
    assert "chain whole" in loop.llmops("ledger", "verify").out

    loop.llmops("stop")
    loop.llmops("serve", "serve.yaml", "--detach")  # the old profile
    assert _engine(loop)["dtype"] == "bfloat16"
    assert loop.answered_by(NAME, "add 9") == champion[5:]
    assert json.loads(loop.llmops("status", "--json").out)["names"][0]["not_serving"] is None
