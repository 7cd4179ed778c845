"""Choosing an arm: even, exact in its shares, the same in every process, and monotone in a canary's share."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from scipy import stats

from llmops.serving.rollout.plan import Arm, Asker, Plan
from llmops.serving.routes import Route, RouteTable
from tests.serving.bare import target

SALT = bytes(range(32))


def plan(*weights: float, salt: bytes = SALT) -> Plan:
    return Plan(tuple(Arm(f"arm{i}", target(f"m{i}"), w) for i, w in enumerate(weights)), salt)


def table(*weights: float) -> RouteTable:
    champion = target("champion")
    route = Route("docs", champion.digest, "f" * 64, champion, plan=plan(*weights))
    return RouteTable(1, {"docs": route}, {}, None)


def test_places_are_even_and_differ_between_rollouts() -> None:
    users = [Asker(user=f"user-{i}") for i in range(20_000)]
    places = [plan(0.5).place(user) for user in users]
    cells = Counter(int(place * 50) for place in places)
    assert stats.chisquare([cells[i] for i in range(50)]).pvalue > 0.001
    assert stats.kstest(places, "uniform").pvalue > 0.001
    others = [plan(0.5, salt=bytes(32)).place(user) for user in users]
    assert abs(stats.pearsonr(places, others).statistic) < 0.03
    both = Counter((int(a * 4), int(b * 4)) for a, b in zip(places, others, strict=True))
    assert stats.chisquare([both[i, j] for i in range(4) for j in range(4)]).pvalue > 0.001


def test_shares_are_within_binomial_bounds_with_and_without_a_user() -> None:
    here, n = table(0.1, 0.25), 20_000
    for who in ([Asker(user=str(i)) for i in range(n)], [Asker()] * n):
        found = Counter(here.choose("docs", one).arm for one in who)
        for arm, share in {"arm0": 0.1, "arm1": 0.25, "champion": 0.65}.items():
            assert stats.binomtest(found[arm], n, share).pvalue > 1e-6, (arm, found)


def test_place_is_the_same_in_another_process_and_the_published_one() -> None:
    code = (
        "from llmops.serving.rollout.plan import Asker, Plan;"
        "print(repr(Plan((), bytes(range(32))).place(Asker(None, 'ada', 'local'))))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    from hashlib import blake2b

    digest = blake2b(SALT + b"ulocal\0ada", digest_size=8).hexdigest()
    here = plan().place(Asker(None, "ada", "local"))
    assert float(other) == here
    assert here == pytest.approx(int(digest, 16) / 2**64, abs=1e-12)


def test_larger_share_keeps_every_user_it_had() -> None:
    users = [Asker(user=str(i)) for i in range(2_000)]
    had = {u.user for u in users if table(0.1).choose("docs", u).arm == "arm0"}
    has = {u.user for u in users if table(0.4).choose("docs", u).arm == "arm0"}
    assert had < has


def test_one_user_of_two_tenants_is_two_users() -> None:
    who = Asker(user="ada", tenant="one")
    assert plan().place(who) != plan().place(replace(who, tenant="two"))
    assert plan().place(Asker(session="ada")) != plan().place(Asker(user="ada"))


def test_full_shares_leave_the_champion_nothing() -> None:
    arms = {table(0.5, 0.5).choose("docs", Asker(user=str(i))).arm for i in range(2_000)}
    assert arms == {"arm0", "arm1"}
