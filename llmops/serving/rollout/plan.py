"""Who gets a public name's traffic besides its champion, compiled so that choosing costs a hash and a bisection.

A place in [0, 1) belongs to every user of a rollout for as long as it runs: it is a salted hash of the session or the
user, so that it is even, differs between rollouts, and is the same in every process. Arms lie side by side from 0 on
and the champion behind them; a canary whose share grows keeps the users it had.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from typing import Any

from llmops.records import CascadeRule, ShadowRule
from llmops.registry.rollouts import SPLITTING, RolloutState
from llmops.serving.target import Target

_PLACES = 53  # bits of a double's fraction
_STEP = 2.0**-_PLACES


@dataclass(frozen=True)
class Asker:
    """Whose request it is, as far as it says: session (header x-llmops-session), user (OpenAI's field), tenant."""

    session: str | None = None
    user: str | None = None
    tenant: str | None = None

    @property
    def unit(self) -> str | None:
        """What is kept on one arm: the session, else the user, of this tenant; None when the request names neither."""
        if self.session is not None:
            return f"s{self.tenant}\0{self.session}"
        return f"u{self.tenant}\0{self.user}" if self.user is not None else None


@dataclass(frozen=True)
class Arm:
    """Something that gets a share of a name's traffic."""

    name: str
    target: Target
    weight: float


@dataclass(frozen=True)
class Shadow:
    """Something that is asked as well, and whose answers no client sees."""

    target: Target
    rule: ShadowRule


@dataclass(frozen=True)
class Cascade:
    """Something cheaper that is asked first."""

    first: Target
    rule: CascadeRule


@dataclass(frozen=True)
class Plan:
    """One name's rollouts. `salt` goes into the hash that places users: the splitting rollout's digest."""

    arms: tuple[Arm, ...] = ()
    salt: bytes = b""
    shadow: Shadow | None = None
    fallback: Target | None = None
    cascade: Cascade | None = None

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """Where each arm's part of [0, 1) ends."""
        return tuple(accumulate(arm.weight for arm in self.arms))

    def place(self, who: Asker) -> float:
        """Where in [0, 1) this asker stands; anywhere when the request names nobody."""
        unit = who.unit
        if unit is None:
            return random.random()
        hashed = self._salted.copy()
        hashed.update(unit.encode())
        return (int.from_bytes(hashed.digest()) >> (64 - _PLACES)) * _STEP

    @cached_property
    def _salted(self) -> Any:
        """The hash with the salt in it: a copy of it costs a third of a keyed hash."""
        return blake2b(self.salt, digest_size=8)


NO_PLAN = Plan()


def with_rollout(plan: Plan, state: RolloutState, targets: tuple[Target, ...]) -> Plan:
    """A plan with one more rollout in it."""
    rollout, first = state.rollout, targets[0]
    if rollout.kind in SPLITTING:
        steps = rollout.steps
        weights = [steps[state.step]] if steps else [arm.weight for arm in rollout.arms]
        arms = zip(rollout.arms, targets, weights, strict=True)
        split = tuple(Arm(arm.name, target, weight) for arm, target, weight in arms)
        return replace(plan, arms=split, salt=bytes.fromhex(state.digest))
    if rollout.kind == "shadow" and rollout.shadow is not None:
        return replace(plan, shadow=Shadow(first, rollout.shadow))
    if rollout.kind == "cascade" and rollout.cascade is not None:
        return replace(plan, cascade=Cascade(first, rollout.cascade))
    return replace(plan, fallback=first)


@dataclass(frozen=True)
class Choice:
    """Who answers one request: the target, the arm it answers as, and how likely that was beforehand."""

    target: Target
    arm: str
    propensity: float = 1.0
    shadow: Shadow | None = None
    fallback: Target | None = None
    cascade: Cascade | None = None
