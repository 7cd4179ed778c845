"""Two engines under one gateway, from the command line to what clients, both engines and the ledger see of them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmops.cli.evaluate import endpoint_on
from llmops.engines.endpoint import engine_digest
from llmops.errors import BadRequest
from llmops.records import AdapterRecord, EngineSignature
from llmops.registry.names import name_state
from llmops.serving.lock import running
from tests.evidence import decide, register
from tests.in_process import Done
from tests.serving.gateway import wait_for
from tests.serving.staged import OTHER_BASE, Staged, StagedEngine, staged_gateway

REASON = "written for this test"
BFLOAT16 = "base_model: none\nengine: {kind: transformers, dtype: bfloat16, device: cpu}\nport: 9\n"
OTHER = "base_model: other\nengine: {kind: transformers, dtype: float32, device: cpu}\n"


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Staged]:
    with staged_gateway(tmp_path) as staged:
        yield staged


def start(staged: Staged, profile: str = BFLOAT16) -> EngineSignature:
    """Start a second engine; gives the signature of its answers."""
    path = staged.workspace.root / "second.yaml"
    path.write_text(profile)
    staged.done("engine", "start", str(path))
    standby = staged.gateway.control.keeper.standby
    assert standby is not None
    return standby.fleet.session.signature


def measured(staged: Staged, adapter: AdapterRecord, engine: EngineSignature, **fields: Any) -> None:
    """A genuine decision about an adapter on an engine, against its base."""
    champion = name_state(staged.registry, "docs").champion_adapter
    decide(staged.registry, adapter, engine, champion=champion, **fields)


def on_green(staged: Staged, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 8}
    return staged.client.post(f"{staged.url}/green/v1/chat/completions", json=body)


def told(staged: Staged) -> list[str]:
    return [e.kind for e in staged.registry.ledger.events() if e.kind.startswith("engine.")]


def marked(engine: StagedEngine, mark: str) -> None:
    """Have an engine say in every answer that it gave it."""
    engine.mark = mark


class Stream:
    """Clients that ask all the time, half of them streaming; `seen` counts (status, answer's mark, engine header)."""

    def __init__(self, staged: Staged) -> None:
        self.seen: Counter[tuple[int, str, str]] = Counter()
        self._staged, self._stop, self._lock = staged, threading.Event(), threading.Lock()

    @contextmanager
    def running(self) -> Iterator[Stream]:
        threads = [threading.Thread(target=self._ask, args=(i % 2 == 0,)) for i in range(3)]
        for thread in threads:
            thread.start()
        try:
            self.more()
            yield self
            self.more()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def more(self, n: int = 12) -> None:
        """Return once so many further requests were answered."""
        before = self.seen.total()
        wait_for(lambda: self.seen.total() >= before + n)

    def _ask(self, stream: bool) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._stop.is_set():
                body = {"model": "docs", "messages": [{"role": "user", "content": "Hi."}], "stream": stream}
                answer = client.post(f"{self._staged.url}/v1/chat/completions", json=body)
                text = answer.text
                whole = answer.status_code == 200 and ("[DONE]" in text or not stream) and "error" not in text
                mark = next((m for m in ("BLUE", "GREEN") if m in text), "")
                with self._lock:
                    self.seen[
                        answer.status_code if whole else 0, mark, answer.headers["x-llmops-engine"]
                    ] += 1


# ---------------------------------------------------------------- the way there and back


def test_engine_is_switched_and_switched_back_under_load_without_a_failed_or_mixed_answer(
    staged: Staged,
) -> None:
    docs, blue = staged.adapters[0], staged.signature
    marked(staged.engine, "BLUE")
    engines = {"BLUE": engine_digest(blue)}
    with Stream(staged).running() as stream:
        green = start(staged)
        marked(staged.engine, "GREEN")
        engines["GREEN"] = engine_digest(green)
        assert (green.dtype, blue.dtype) == ("bfloat16", "float32")
        stream.more()
        assert {mark for _, mark, _ in stream.seen} == {"BLUE"}  # clients are answered by blue alone
        asked = on_green(staged, docs.model_name)
        assert "GREEN" in asked.text
        assert asked.headers["x-llmops-engine"] == engines["GREEN"]
        measured(staged, docs, green)
        version = staged.gateway.live.table.version
        for command in ("switch", "back", "switch"):
            staged.done("engine", command)
            stream.seen.clear()
            stream.more()
            version += 1
            assert staged.gateway.live.table.version == version
            last = staged.chat()
            assert last.headers["x-llmops-route-version"] == str(version)
            assert ("BLUE" if command == "back" else "GREEN") in last.text
        n_loads = [what for what, _ in staged.engines[0].log + staged.engines[1].log].count("load")
        staged.done("engine", "retire")
        stream.more()
    assert n_loads == 2  # docs, once on each engine: no flip loaded anything
    assert {status for status, _, _ in stream.seen} == {200}
    assert {(mark, digest) for _, mark, digest in stream.seen} <= set(engines.items())
    assert all(e["status"] == 200 for e in staged.logged())
    assert told(staged) == [
        "engine.requested", "engine.started", *["engine.requested", "engine.switched"] * 3,
        "engine.requested", "engine.retired",
    ]  # fmt: skip
    info = running(staged.workspace)
    assert info is not None
    assert info.engine == green
    assert on_green(staged, docs.model_name).status_code == 404


def test_what_runs_at_the_switch_ends_on_the_engine_it_began_on(staged: Staged) -> None:
    blue = staged.engine
    marked(blue, "BLUE")
    green = start(staged)
    measured(staged, staged.adapters[0], green)
    blue.held = True
    found: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: found.append(staged.chat()))
    thread.start()
    wait_for(lambda: blue.running == 1)
    staged.done("engine", "switch")
    assert "BLUE" not in staged.chat().text
    retired: list[Done] = []
    ending = threading.Thread(target=lambda: retired.append(staged.cli("engine", "retire")))
    ending.start()
    wait_for(lambda: staged.gateway.control.keeper.standby is None)
    assert blue.running == 1
    assert not retired
    blue.held = False
    thread.join()
    ending.join()
    assert found[0].status_code == 200
    assert "BLUE" in found[0].text
    assert retired[0].code == 0
    assert told(staged)[-1] == "engine.retired"


@pytest.mark.walk
def test_gateway_that_starts_again_with_the_old_profile_comes_up_on_the_engine_that_served(
    tmp_path: Path,
) -> None:
    with staged_gateway(tmp_path) as staged:
        blue, green = staged.signature, start(staged)
        measured(staged, staged.adapters[0], green)
        staged.done("engine", "switch")
        before = staged.gateway.live.table.version
    with staged_gateway(tmp_path) as again:
        assert again.signature == green
        assert again.chat().headers["x-llmops-engine"] == engine_digest(green)
        assert again.gateway.live.table.version == before
        start(again, BFLOAT16.replace("bfloat16", "float32"))  # the first engine, as a second one
        again.done("engine", "retire")
        start(again, BFLOAT16.replace("bfloat16", "float32"))
        measured(again, again.adapters[0], blue)
        again.done("engine", "switch", "--retire-after", "0")
        wait_for(lambda: told(again)[-1] == "engine.retired")
    with staged_gateway(tmp_path) as last:
        assert last.signature == blue
        assert last.chat().status_code == 200


@pytest.mark.walk
def test_old_engine_serves_again_when_the_gateway_was_switched_back(tmp_path: Path) -> None:
    with staged_gateway(tmp_path) as staged:
        blue = staged.signature
        measured(staged, staged.adapters[0], start(staged))
        staged.done("engine", "switch")
        staged.done("engine", "back")
        champion = name_state(staged.registry, "docs").champion
    with staged_gateway(tmp_path) as again:
        assert again.signature == blue
        assert again.chat().status_code == 200
        assert name_state(again.registry, "docs").champion == champion


# ---------------------------------------------------------------- another base


def other_adapter(staged: Staged, name: str = "far") -> AdapterRecord:
    """An adapter of the other base."""
    folder = staged.workspace.root / name
    folder.mkdir()
    for file in (staged.workspace.root / "peft1").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return register(staged.registry, OTHER_BASE, folder, name)


def test_names_move_to_adapters_of_the_other_base_and_back_with_their_history(staged: Staged) -> None:
    docs, far = staged.adapters[0], other_adapter(staged)
    green = start(staged, OTHER)
    assert green.base == OTHER_BASE.digest
    refused = staged.cli("engine", "switch")
    assert (refused.code, "docs: no decision about an adapter of base ffffffffffff" in refused.err) == (
        4,
        True,
    )
    loaded = staged.client.post(f"{staged.url}/green/llmops/adapters", json={"adapter": far.adapter})
    assert loaded.status_code == 200, loaded.text
    assert (
        on_green(staged, far.model_name).json()["choices"][0]["message"]["content"]
        == f"said by {far.model_name}"
    )
    assert staged.chat(far.model_name).status_code == 404  # it is on the second engine alone
    decide(staged.registry, far, green, champion=docs.adapter)
    staged.done("engine", "switch")
    assert staged.chat().headers["x-llmops-model"] == far.adapter
    assert [r.adapter for r in name_state(staged.registry, "docs").history] == [docs.adapter, far.adapter]
    staged.done("engine", "back")
    assert staged.chat().headers["x-llmops-model"] == docs.adapter
    assert [r.adapter for r in name_state(staged.registry, "docs").history] == [docs.adapter]
    assert staged.gateway.control.states["docs"].history == name_state(staged.registry, "docs").history


def test_named_adapter_goes_along_instead_of_the_newest(staged: Staged) -> None:
    first, second = other_adapter(staged, "first"), None
    green = start(staged, OTHER)
    champion = staged.adapters[0].adapter
    decide(staged.registry, first, green, champion=champion)
    folder = staged.workspace.root / "first"
    (folder / "adapter_model.safetensors").write_bytes(b"other weights")
    second = register(staged.registry, OTHER_BASE, folder, "second")
    decide(staged.registry, second, green, champion=champion)
    staged.done("engine", "switch", "--release", "docs=first")
    assert staged.chat().headers["x-llmops-model"] == first.adapter


# ---------------------------------------------------------------- what is refused


def test_names_that_were_not_measured_on_the_new_engine_keep_it_from_serving(staged: Staged) -> None:
    mail = staged.adapters[1]
    staged.decided(mail, "mail")
    staged.done("release", "promote", "mail")
    green = start(staged)
    measured(staged, staged.adapters[0], green)
    refused = staged.cli("engine", "switch")
    assert refused.code == 4
    assert "mail: measured on dtype=float32, this engine has dtype=bfloat16; run `llmops eval" in refused.err
    assert f"--adapter {mail.model_name} --engine green" in refused.err
    assert "docs" not in refused.err.split("`")[0]
    decide(staged.registry, mail, green, verdict="FAIL", public_name="mail")
    refused = staged.cli("engine", "switch")
    assert (refused.code, "release mail: the gate said FAIL" in refused.err) == (1, True)
    assert staged.chat("mail").headers["x-llmops-engine"] == engine_digest(staged.signature)
    assert "engine.switched" not in told(staged)


def test_gateway_itself_refuses_a_release_that_was_measured_on_the_other_engine(staged: Staged) -> None:
    """Whoever writes the request: the command line's checks are not what protects clients."""
    green, champion = start(staged), name_state(staged.registry, "docs").champion
    assert champion is not None
    body = {"action": "switch", "engine": engine_digest(green), "releases": {"docs": champion.digest()}}
    staged.registry.ledger.append("engine.requested", body)
    wait_for(lambda: told(staged)[-1] == "engine.refused")
    (refusal,) = staged.registry.ledger.events("engine.refused")
    assert "measured on dtype=float32, this engine has dtype=bfloat16" in refusal.body["reason"]
    body = {"action": "switch", "engine": engine_digest(green), "releases": {}}
    staged.registry.ledger.append("engine.requested", body)
    wait_for(lambda: len(staged.registry.ledger.events("engine.refused")) == 2)
    assert staged.chat().headers["x-llmops-engine"] == engine_digest(staged.signature)


def test_rollout_in_force_keeps_the_engine(staged: Staged) -> None:
    green = start(staged)
    measured(staged, staged.adapters[0], green)
    staged.done("rollout", "shadow", "docs", "--adapter", "docs1")
    refused = staged.cli("engine", "switch")
    assert (refused.code, "rollouts run under docs; end them first" in refused.err) == (4, True)
    staged.done("rollout", "abort", "docs")
    staged.done("engine", "switch")


def test_nonsense_is_refused_in_one_line(staged: Staged, tmp_path: Path) -> None:
    (tmp_path / "second.yaml").write_text(BFLOAT16)
    (tmp_path / "wrong.yaml").write_text("base_model: none\nengine: {kind: oven}\n")
    start_line = ("engine", "start", str(tmp_path / "second.yaml"))
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("engine", "switch"), 2, "none stands beside the one that serves"),
        (("engine", "back"), 2, "the engine was not switched"),
        (("engine", "retire"), 2, "no second engine stands beside"),
        (("engine", "start", str(tmp_path / "none.yaml")), 2, "no such file"),
        (("engine", "start", str(tmp_path / "wrong.yaml")), 2, "oven"),
    ]
    for command, code, words in cases:
        found = staged.cli(*command)
        assert (found.code, words in found.err, found.err.count("\n")) == (code, True, 1), found.err
    assert "ignored  port" in staged.done(*start_line)
    after: list[tuple[tuple[str, ...], int, str]] = [
        (start_line, 2, "a second engine stands there already"),
        (("engine", "switch", "--release", "docs"), 2, "is not NAME=ADAPTER"),
        (("engine", "switch", "--release", "nobody=docs1"), 2, "there is no such public name"),
    ]
    for command, code, words in after:
        found = staged.cli(*command)
        assert (found.code, words in found.err) == (code, True), found.err
    with pytest.raises(BadRequest, match="use green"):
        endpoint_on("http://127.0.0.1:8000/v1", "red")
    assert endpoint_on("http://127.0.0.1:8000/v1", "green") == "http://127.0.0.1:8000/green"
    unserved = staged.client.get(f"{staged.url}/green/metrics")
    assert (unserved.status_code, unserved.json()["error"]["code"]) == (404, "unknown_path")


def test_nothing_is_asked_of_a_workspace_that_does_not_serve(tmp_path: Path) -> None:
    with staged_gateway(tmp_path) as staged:
        pass
    refused = staged.cli("engine", "back")
    assert (refused.code, "nothing serves in this workspace" in refused.err) == (2, True)


# ---------------------------------------------------------------- what else happens meanwhile


def test_second_engine_that_dies_is_noted_and_the_first_serves_on(staged: Staged) -> None:
    blue = staged.engine
    marked(blue, "BLUE")
    start(staged)
    assert [e["colour"] for e in json.loads(staged.done("engine", "status", "--json"))] == ["blue", "green"]
    staged.run(staged.processes[1].stop())
    staged.processes[1].dead = True
    wait_for(lambda: told(staged)[-1] == "engine.retired")
    assert "BLUE" in staged.chat().text
    assert len(staged.engines) == 2
    (blue_alone,) = json.loads(staged.done("engine", "status", "--json"))
    assert (blue_alone["colour"], blue_alone["serves"]) == ("blue", True)
    refused = staged.cli("engine", "switch")
    assert (refused.code, "docs" in refused.err) == (4, True)


def test_engine_that_serves_after_the_switch_is_restarted_when_it_dies(staged: Staged) -> None:
    green = start(staged)
    measured(staged, staged.adapters[0], green)
    staged.done("engine", "switch")
    staged.run(staged.processes[1].stop())
    staged.processes[1].dead = True
    wait_for(lambda: len(staged.engines) == 3 and staged.gateway.live.table.down is None)
    assert staged.chat().headers["x-llmops-engine"] == engine_digest(green)
    staged.done("engine", "back")
    assert staged.chat().headers["x-llmops-engine"] != engine_digest(green)


def test_release_beside_a_second_engine_is_carried_out_on_the_one_that_serves(staged: Staged) -> None:
    start(staged)
    staged.decided(staged.adapters[1])
    staged.done("release", "promote", "docs")
    answer = staged.chat()
    assert answer.headers["x-llmops-model"] == staged.adapters[1].adapter
    assert answer.headers["x-llmops-engine"] == engine_digest(staged.signature)
    assert staged.adapters[1].model_name not in staged.engines[1].loaded


@pytest.mark.walk
def test_name_by_override_goes_along_and_one_that_came_later_keeps_the_way_back_shut(staged: Staged) -> None:
    staged.done("release", "override", "docs", "--adapter", "docs1", "--reason", REASON)
    green = start(staged)
    staged.done("engine", "switch")
    assert staged.chat().headers["x-llmops-model"] == staged.adapters[1].adapter
    decide(staged.registry, staged.adapters[2], green, public_name="late")
    staged.done("release", "promote", "late")
    refused = staged.cli("engine", "back")
    assert (refused.code, "late came after the switch" in refused.err) == (4, True)
    assert staged.chat("late").headers["x-llmops-engine"] == engine_digest(green)


def test_engine_is_not_changed_under_one_of_several_gateways(staged: Staged) -> None:
    measured(staged, staged.adapters[0], start(staged))
    staged.gateway.control.seat.n_others = 1
    for command in (("switch",), ("back",), ("start", str(staged.workspace.root / "second.yaml"))):
        refused = staged.cli("engine", *command)
        assert (refused.code, "1 other gateways follow this one" in refused.err) == (2, True), refused.err
    staged.done("engine", "retire")
    assert told(staged)[-1] == "engine.retired"


def test_status_shows_both_engines(staged: Staged) -> None:
    measured(staged, staged.adapters[0], start(staged))
    staged.done("engine", "switch")
    out = staged.done("status")
    assert "bfloat16" in next(line for line in out.splitlines() if line.startswith("serving"))
    assert "float32" in next(line for line in out.splitlines() if line.startswith("stands by"))
    rows = staged.done("engine", "status").splitlines()
    assert [row.split()[0] for row in rows if row.startswith(("blue", "green"))] == ["green", "blue"]
