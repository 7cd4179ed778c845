"""Two gateways on one PostgreSQL: a key made or revoked anywhere counts on both, and so does its use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmops.auth import KeyLimits
from llmops.settings import Workspace
from tests.in_process import llmops
from tests.serving.bare import Bare, bare_gateway
from tests.serving.gateway import wait_for
from tests.serving.keyed import Keyed, keyed_gateway


@pytest.fixture
def two(on_postgres: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Keyed, Bare]]:
    other: Path = tmp_path_factory.mktemp("other")
    with keyed_gateway(on_postgres.root) as first, bare_gateway(other) as second:
        yield first, second


def test_key_is_known_and_revoked_on_both(two: tuple[Keyed, Bare]) -> None:
    first, second = two
    made = json.loads(llmops(second.workspace.root, "key", "create", "app", "--json").out)
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert [gateway.chat(headers=headers).status_code for gateway in (first.bare, second)] == [200, 200]
    assert llmops(first.bare.workspace.root, "key", "revoke", made["id"]).code == 0
    for gateway in (first.bare, second):
        wait_for(lambda gateway=gateway: gateway.chat(headers=headers).status_code == 401)


def test_use_on_both_is_one_sum_and_counts_against_one_quota(two: tuple[Keyed, Bare]) -> None:
    first, second = two
    key = first.add("daily", KeyLimits(tokens_per_day=100))
    gateways = [first.bare, second]
    for i in range(8):  # 80 tokens, 40 on each
        assert gateways[i % 2].chat(headers=first.headers("daily")).status_code == 200
    for gateway in (*gateways, *gateways):
        gateway.run(gateway.gateway.access.usage.flush())
    for _ in range(2):
        assert second.chat(headers=first.headers("daily")).status_code == 200
    assert second.chat(headers=first.headers("daily")).status_code == 429
    second.run(second.gateway.access.usage.flush())
    rows = json.loads(llmops(first.bare.workspace.root, "usage", "--json").out)
    assert [(row["what"], row["n_requests"], row["n_prompt_tokens"]) for row in rows] == [(key, 10, 70)]


def test_minute_s_limit_counts_what_the_other_gateway_let_through(
    two: tuple[Keyed, Bare], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmops.serving.limits.monotonic", lambda: 1000.0)
    first, second = two
    first.add("slow", KeyLimits(requests_per_minute=10))
    gateways = [first.bare, second]
    for gateway in gateways:
        assert gateway.chat(headers=first.headers("slow")).status_code == 200
    for gateway in (*gateways, *gateways):
        gateway.run(gateway.gateway.access.usage.flush())
    for _ in range(5):
        assert first.bare.chat(headers=first.headers("slow")).status_code == 200
    for gateway in gateways:
        gateway.run(gateway.gateway.access.usage.flush())
    statuses = [second.chat(headers=first.headers("slow")).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]  # 2 by both, 5 there, 3 here
