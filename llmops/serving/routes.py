"""The route table: which model name is answered by what, as one immutable value that is swapped whole.

A request reads the table once and keeps what it found; a flip changes what later requests find. Three sorts
of names: public names (they move with releases and rollouts), `name@digest12` of the adapters that are loaded and
proved, and `base@digest12`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

from llmops.records import CHAMPION
from llmops.schema import digest_of
from llmops.serving.http import Header, Refusal
from llmops.serving.rollout.meter import Meter
from llmops.serving.rollout.plan import NO_PLAN, Asker, Choice, Plan
from llmops.serving.target import Target

__all__ = ["Asker", "Choice", "Live", "Route", "RouteTable", "Side", "Target"]

_OPERATOR_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}@[0-9a-f]{12}")
NEVER = 0
DIRECT = "direct"
"""The arm of a request that names an adapter or the base itself."""


@dataclass(frozen=True)
class Route:
    """A public name: its champion, or the reason why it has none and answers 503, and who else gets traffic."""

    name: str
    adapter: str  # digest
    release: str  # Release digest
    target: Target | None
    reason: str | None = None
    plan: Plan = NO_PLAN

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """What may be chosen: the arms in their order, the champion last."""
        if self.target is None:
            return ()
        plan = self.plan
        rest = 1.0 - sum(arm.weight for arm in plan.arms)
        arms = (Choice(arm.target, arm.name, arm.weight, fallback=plan.fallback) for arm in plan.arms)
        own = Choice(self.target, CHAMPION, rest, plan.shadow, plan.fallback, plan.cascade)
        return (*arms, own)


@dataclass(frozen=True)
class RouteTable:
    """All names at one moment. `down` is set while nothing can answer (the engine starts, or is gone).

    `version` is the number of events in the ledger by which names moved or traffic was shared otherwise: the same table
    has the same version after a restart.
    """

    version: int = NEVER
    names: Mapping[str, Route] = field(default_factory=dict)
    operator: Mapping[str, Target] = field(
        default_factory=dict
    )  # the base and loaded adapters by immutable name
    down: str | None = "the engine is starting"

    @cached_property
    def version_header(self) -> Header:
        """The response header that says which table was in force."""
        return b"x-llmops-route-version", str(self.version).encode()

    def with_down(self, reason: str | None) -> RouteTable:
        """The table with nothing answering for that reason; None: the engine answers again."""
        return replace(self, down=reason)

    def with_route(self, route: Route) -> RouteTable:
        """The table with one public name as it is found at a start."""
        return replace(self, names={**self.names, route.name: route})

    def moved(self, route: Route) -> RouteTable:
        """The next version: one public name pointing elsewhere, or its traffic shared otherwise."""
        return replace(self, version=self.version + 1, names={**self.names, route.name: route})

    def with_names_of(self, other: RouteTable) -> RouteTable:
        """The table with another's public names and version: a move that is taken back."""
        return replace(self, version=other.version, names=other.names)

    def with_version(self, version: int) -> RouteTable:
        """The table under the version that the ledger says."""
        return replace(self, version=version)

    def with_operator(self, operator: Mapping[str, Target]) -> RouteTable:
        """The table with other operator names."""
        return replace(self, operator=dict(operator))

    def choose(self, asked: str, who: Asker) -> Choice:
        """Who answers this request for a model name.

        Raises:
            Refusal: as `resolve`.
        """
        route = self.names.get(asked)
        if route is None or self.down is not None or route.target is None:
            return self._direct(asked)
        plan = route.plan
        if not plan.arms:
            return route.choices[-1]
        return route.choices[bisect_right(plan.edges, plan.place(who))]

    def _direct(self, asked: str) -> Choice:
        found = self._chosen.get(asked)
        if found is None:
            found = self._chosen[asked] = Choice(self.resolve(asked), DIRECT)
        return found

    @cached_property
    def _chosen(self) -> dict[str, Choice]:
        return {}

    def resolve(self, asked: str) -> Target:
        """The target that a model name stands for; of a public name its champion.

        Raises:
            Refusal: 503 while nothing can answer or the name's evidence does not hold, 404 when there is no such name.
        """
        if self.down is not None:
            raise Refusal(503, f"{self.down}; try again shortly", code="engine_unavailable", retry_after_s=2)
        route = self.names.get(asked)
        if route is not None:
            if route.target is None:
                raise Refusal(
                    503,
                    f"model {asked} does not serve: {route.reason}",
                    param="model",
                    code="model_not_serving",
                )
            return route.target
        target = self.operator.get(asked)
        if target is not None:
            return target
        raise Refusal(404, self._unknown(asked), param="model", code="model_not_found")

    def lineage(self, target: Target, arm: str) -> str:
        """The id of everything that an answer by this target as this arm under this table stands on."""
        return self._told(target, arm)[0]

    def headers(self, target: Target, arm: str) -> tuple[Header, ...]:
        """The response headers that say who answers, as what, and on what that stands."""
        return self._told(target, arm)[1]

    def _told(self, target: Target, arm: str) -> tuple[str, tuple[Header, ...]]:
        found = self._known.get((target.digest, arm))
        if found is None:
            lineage = lineage_id(target, self.version, arm)
            said = ((b"x-llmops-arm", arm.encode()), (b"x-llmops-lineage", lineage.encode()))
            found = self._known[target.digest, arm] = (lineage, (*target.headers, *said))
        return found

    @cached_property
    def _known(self) -> dict[tuple[str, str], tuple[str, tuple[Header, ...]]]:
        return {}

    def _unknown(self, asked: str) -> str:
        if _OPERATOR_NAME.fullmatch(asked):
            how = f'POST /llmops/adapters {{"adapter": "{asked}"}}'
            return f"model {asked} is not loaded; {how} loads a registered adapter"
        known = ", ".join(sorted((*self.names, *self.operator))) or "none"
        return f"model {asked[:100]!r} does not exist; models here: {known}"


def lineage_id(target: Target, version: int, arm: str) -> str:
    """Digest of who answers: adapter (or base), prompt contract, version of the route table, arm."""
    said = {
        "adapter": target.digest, "prompt_contract": target.contract.digest(), "route_version": version, "arm": arm,
    }  # fmt: skip
    return digest_of(said)


class Side:
    """One engine's place in the gateway: where it is, what is answered by it under which names, and what runs on it.

    A request reads the side that serves once and keeps it: its engine and its table belong together whatever serves
    later. `in_flight` counts the requests that run on each adapter or base there, by digest. `engine_is_shared` says
    whether other gateways may answer from somebody else's engine too: then no adapter is unloaded there.
    """

    def __init__(self) -> None:
        """Begin with the empty table of an engine that is starting."""
        self.table = RouteTable()
        self.url = ""
        self.in_flight: Counter[str] = Counter()
        self.engine_is_shared: Callable[[], bool] = lambda: False

    @contextmanager
    def using(self, target: Target) -> Iterator[None]:
        """Count a request as running on a target until the block ends."""
        self.in_flight[target.digest] += 1
        try:
            yield
        finally:
            self.in_flight[target.digest] -= 1


class Live:
    """What the relay reads at every request and control alone changes: the side that serves.

    `meter` counts what watched arms did.
    """

    def __init__(self) -> None:
        """Begin with an engine that is starting."""
        self.side = Side()
        self.meter = Meter()

    @property
    def table(self) -> RouteTable:
        """The table in force."""
        return self.side.table

    @table.setter
    def table(self, table: RouteTable) -> None:
        """Put another table in force on the side that serves."""
        self.side.table = table

    @property
    def in_flight(self) -> Counter[str]:
        """The requests that run on the engine that serves, by digest of adapter or base."""
        return self.side.in_flight
