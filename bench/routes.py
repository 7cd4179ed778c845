"""What choosing a route costs with 1,000 adapters.

    python bench/routes.py

A table of 1,000 public names, each with a champion, a canary, an arm, a shadow and a fallback. Timed is the choice, by
itself and with the lineage id that every answer carries, for users who ask for names in turn; the peer is a bare dict's
look-up by the same names, the least any table could cost. Times are CPU microseconds a decision, the median of 9 rounds
of 100,000.
"""

from __future__ import annotations

from time import process_time

from _figure import say, signature

from llmops.records import PromptContract, ShadowRule
from llmops.serving.rollout.plan import Arm, Asker, Plan, Shadow
from llmops.serving.routes import Route, RouteTable, Target

N_NAMES, N_DECISIONS, N_ROUNDS = 1_000, 100_000, 9
CONTRACT = PromptContract("template", "0" * 64, (2,))


def target(name: str) -> Target:
    digest = name.encode().hex().ljust(64, "0")[:64]
    return Target(f"{name}@{digest[:12]}", digest, CONTRACT, "e" * 64)


def table(plan: bool) -> RouteTable:
    """A thousand names; without `plan` each has its champion alone."""
    routes, operator = {}, {}
    for i in range(N_NAMES):
        champion, canary, arm, shadow = (
            target(f"{kind}{i:04}") for kind in ("champion", "canary", "arm", "shadow")
        )
        rule = ShadowRule(sample=0.1, max_running=2, max_busy=4)
        shares = (Arm("canary", canary, 0.1), Arm("arm", arm, 0.2))
        plans = Plan(shares, bytes(32), Shadow(shadow, rule), target("base")) if plan else Plan()
        routes[f"name{i:04}"] = Route(f"name{i:04}", champion.digest, "f" * 64, champion, plan=plans)
        operator |= {t.engine_name: t for t in (champion, canary, arm, shadow)}
    return RouteTable(1, routes, operator, None)


def choices(here: RouteTable, whos: list[Asker], names: list[str]) -> float:
    """Microseconds a choice."""
    began = process_time()
    for who, name in zip(whos, names, strict=True):
        here.choose(name, who)
    return 1e6 * (process_time() - began) / len(names)


def round_of(here: RouteTable, whos: list[Asker], names: list[str]) -> float:
    """Microseconds a choice with its lineage id."""
    began = process_time()
    for who, name in zip(whos, names, strict=True):
        choice = here.choose(name, who)
        here.lineage(choice.target, choice.arm)
    return 1e6 * (process_time() - began) / len(names)


def bare_round(found: dict[str, Route], names: list[str]) -> float:
    began = process_time()
    for name in names:
        found[name]
    return 1e6 * (process_time() - began) / len(names)


def main() -> None:
    names = [f"name{i * 7919 % N_NAMES:04}" for i in range(N_DECISIONS)]
    users = [Asker(user=f"user-{i % 5000}", tenant="local") for i in range(N_DECISIONS)]
    sign = signature(goal="at most 5 us", n_names=N_NAMES, n_decisions=N_DECISIONS, n_rounds=N_ROUNDS)
    shared, alone = table(plan=True), table(plan=False)
    for here in (shared, alone):
        round_of(here, users, names)  # lineage ids are made once a table
    bare = [bare_round(dict(shared.names), names) for _ in range(N_ROUNDS)]
    for what, here in (("shared traffic", shared), ("champions alone", alone)):
        chosen = [choices(here, users, names) for _ in range(N_ROUNDS)]
        say(f"route decision, {what}", chosen, "us", sign, {"dict look-up": bare})
        told = [round_of(here, users, names) for _ in range(N_ROUNDS)]
        say(f"route decision and lineage id, {what}", told, "us", sign, {"dict look-up": bare})


if __name__ == "__main__":
    main()
