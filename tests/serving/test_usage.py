"""What is counted of use, held against the request log, and what it costs, in closed form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from llmops.db import open_database, writing
from llmops.errors import StoreError
from llmops.records import ShadowRule
from llmops.serving.profile import Price, Prices
from llmops.serving.rollout.plan import Plan, Shadow
from llmops.tables import usage
from tests.in_process import llmops
from tests.serving.bare import target
from tests.serving.gateway import wait_for
from tests.serving.keyed import Keyed, keyed_gateway

PRICES = {
    "currency": "EUR",
    "default": {"prompt": 0.5, "completion": 2.0},
    "models": {"mail": {"prompt": 1.0, "completion": 4.0}},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with keyed_gateway(tmp_path_factory.mktemp("keyed"), prices=PRICES) as keyed:
        yield keyed


@pytest.fixture
def keyed(shared: Keyed) -> Iterator[Keyed]:
    """The shared gateway as if nothing had been asked of it yet."""
    gateway, table = shared.bare.gateway, shared.bare.gateway.live.table
    shared.bare.logged()
    gateway.log.path.unlink(missing_ok=True)
    shared.bare.run(gateway.access.usage.flush())
    with writing(open_database(shared.bare.workspace.database_url)) as connection:
        connection.execute(usage.delete())
    yield shared
    gateway.live.table, shared.bare.engine.reply = table, None


def told(keyed: Keyed, *words: str) -> list[dict[str, Any]]:
    keyed.bare.run(keyed.bare.gateway.access.usage.flush())
    done = llmops(keyed.bare.workspace.root, "usage", "--json", *words)
    assert done.code == 0, done.err
    rows: list[dict[str, Any]] = json.loads(done.out)
    return rows


def test_sums_of_usage_are_those_of_the_request_log(keyed: Keyed) -> None:
    for i in range(6):
        keyed.chat("all", ("docs", "mail")[i % 2], stream=i % 3 == 0)
    for _ in range(4):
        keyed.chat("docs")
    keyed.chat("docs", "mail")  # out of scope: no model was asked
    keyed.chat("operator", target("docs").engine_name)
    lines = [line for line in keyed.bare.logged() if line["answered_by"]]
    for by, field in (("key", "key"), ("adapter", "answered_by"), ("model", "model"), ("tenant", "tenant")):
        rows = told(keyed, "--by", by)
        assert {row["what"] for row in rows} == {line[field] for line in lines}
        for row in rows:
            mine = [line for line in lines if line[field] == row["what"]]
            assert row["n_requests"] == len(mine)
            assert row["n_prompt_tokens"] == sum(line["n_prompt_tokens"] for line in mine)
            assert row["n_completion_tokens"] == sum(line["n_completion_tokens"] for line in mine)
            assert (row["n_errors"], row["n_estimated"]) == (0, 0)
    (day,) = told(keyed, "--by", "day")
    assert (day["what"], day["n_requests"]) == (lines[0]["at"][:10], 11)
    assert {row["name"] for row in told(keyed)} == {"all", "docs", "operator"}


def test_cost_is_tokens_times_the_price_of_the_name_that_was_asked_for(keyed: Keyed) -> None:
    for _ in range(3):
        keyed.chat("all", "docs")
        keyed.chat("all", "mail")
    rows = {row["what"]: row for row in told(keyed, "--by", "model")}
    assert rows["docs"]["cost"] == pytest.approx(3 * (7 * 0.5 + 3 * 2.0) / 1000)
    assert rows["mail"]["cost"] == pytest.approx(3 * (7 * 1.0 + 3 * 4.0) / 1000)
    assert {row["currency"] for row in rows.values()} == {"EUR"}
    said = llmops(keyed.bare.workspace.root, "usage").out.splitlines()
    assert "0.0855 EUR" in said[1]
    assert said[1].split()[1] == "all"


def test_name_without_a_price_of_its_own_costs_the_default() -> None:
    prices = Prices(currency="USD", default=Price(prompt=3.0), models={"big": Price(completion=10.0)})
    assert prices.cost("small", 2000, 900) == 6.0
    assert prices.cost("big", 2000, 900) == 9.0


def test_use_before_the_first_key_is_counted_for_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.serving.bare import bare_gateway

    with bare_gateway(tmp_path_factory.mktemp("open")) as bare:
        bare.chat()
        bare.run(bare.gateway.access.usage.flush())
        rows = json.loads(llmops(bare.workspace.root, "usage", "--json").out)
    assert [(row["what"], row["n_requests"], row["currency"]) for row in rows] == [("", 1, "")]


def test_shadow_traffic_is_nobody_s_use(keyed: Keyed) -> None:
    table = keyed.bare.gateway.live.table
    route = replace(table.names["docs"], plan=Plan(shadow=Shadow(target("mail"), ShadowRule(1.0, 9, 9))))
    keyed.bare.gateway.live.table = table.with_route(route)
    for _ in range(4):
        assert keyed.chat("docs", "docs").status_code == 200
    wait_for(lambda: sum(line["arm"] == "shadow" for line in keyed.bare.logged()) == 4)
    (row,) = told(keyed, "--by", "adapter")
    assert (row["what"], row["n_requests"], row["n_prompt_tokens"]) == (target("docs").digest, 4, 28)


def test_failed_answers_are_counted_as_errors_and_cost_nothing(keyed: Keyed) -> None:
    from aiohttp import web

    async def broken(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=500)

    keyed.bare.engine.reply = broken
    assert keyed.chat("docs").status_code == 502
    (row,) = told(keyed)
    assert (row["n_requests"], row["n_errors"], row["n_prompt_tokens"], row["cost"]) == (1, 1, 0, 0.0)


def test_database_that_does_not_take_it_loses_nothing_and_holds_nobody_up(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = keyed.bare.gateway.access.usage

    def full(waiting: object) -> None:
        raise StoreError("database: could not be written (disk full)")

    monkeypatch.setattr(book, "_write", full)
    for _ in range(3):
        assert keyed.chat("docs").status_code == 200
        keyed.bare.run(book.flush())
    assert told(keyed) == []
    monkeypatch.undo()
    assert [row["n_requests"] for row in told(keyed)] == [3]


def test_what_there_is_no_room_for_is_counted_as_lost(keyed: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    book = keyed.bare.gateway.access.usage
    monkeypatch.setattr("llmops.serving.usage.MAX_ROWS", 1)
    monkeypatch.setattr(book, "_flush", lambda: asyncio.sleep(0))  # the clock's own writes nothing meanwhile
    for model in ("docs", "mail", "docs"):
        assert keyed.chat("all", model).status_code == 200
    assert "llmops_usage_lost 1.0" in keyed.get("/metrics", "operator").text
    assert keyed.get("/llmops/status", "operator").json()["n_usage_lost"] == 1
    monkeypatch.undo()
    assert [(row["what"], row["n_requests"]) for row in told(keyed, "--by", "model")] == [("docs", 2)]


def test_stopping_writes_what_was_counted(tmp_path_factory: pytest.TempPathFactory) -> None:
    with keyed_gateway(tmp_path_factory.mktemp("stop")) as keyed:
        for _ in range(5):
            keyed.chat("docs")
    rows = json.loads(llmops(keyed.bare.workspace.root, "usage", "--json").out)
    assert [row["n_requests"] for row in rows] == [5]


def test_days_before_since_are_left_out_and_nonsense_is_refused(keyed: Keyed) -> None:
    keyed.chat("docs")
    assert told(keyed, "--since", "2999-01-01") == []
    assert len(told(keyed, "--since", "2020-01-01")) == 1
    for words, said in ((["--since", "yesterday"], "is no day"), (["--by", "colour"], "'colour' is none")):
        done = llmops(keyed.bare.workspace.root, "usage", *words)
        assert (done.code, said in done.err) == (2, True)
