"""The route table: which model name is answered by what, as one immutable value that is swapped whole.

A request reads the table once and keeps what it found; a flip changes what later requests find. Three sorts
of names: public names (they move with releases), `name@digest12` of the adapters that are loaded and proved,
and `base@digest12`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from llmops.records import PromptContract
from llmops.serving.http import Header, Refusal

_OPERATOR_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}@[0-9a-f]{12}")
NEVER = 0


@dataclass(frozen=True)
class Target:
    """Something loaded in the engine that can answer.

    `engine_name` is its immutable name there (`name@digest12`), `digest` the full digest of the adapter or
    base, `contract` the prompt contract its answers are made under and `engine` the digest of the engine's
    signature.
    """

    engine_name: str
    digest: str
    contract: PromptContract
    engine: str

    @cached_property
    def headers(self) -> tuple[Header, ...]:
        """The response headers that say who answered."""
        return (
            (b"x-llmops-model", self.digest.encode()),
            (b"x-llmops-prompt-contract", self.contract.digest().encode()),
            (b"x-llmops-engine", self.engine.encode()),
        )

    @cached_property
    def model_field(self) -> re.Pattern[bytes]:
        """Matches the `model` field of the engine's JSON, never text: inside a JSON string its quotes are escaped."""
        return re.compile(rb'"model":\s?"' + re.escape(self.engine_name.encode()) + rb'"')


@dataclass(frozen=True)
class Route:
    """A public name: its target, or the reason why it has none and answers 503."""

    name: str
    adapter: str  # digest
    release: str  # Release digest
    target: Target | None
    reason: str | None = None


@dataclass(frozen=True)
class RouteTable:
    """All names at one moment. `down` is set while nothing can answer (the engine starts, or is gone)."""

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
        """The next table, with nothing answering for that reason; None: the engine answers again."""
        return replace(self, version=self.version + 1, down=reason)

    def with_route(self, route: Route) -> RouteTable:
        """The next table, with one public name pointing elsewhere."""
        return replace(self, version=self.version + 1, names={**self.names, route.name: route})

    def with_names(self, names: Mapping[str, Route]) -> RouteTable:
        """The next table, with other public names."""
        return replace(self, version=self.version + 1, names=dict(names))

    def with_operator(self, operator: Mapping[str, Target]) -> RouteTable:
        """The next table, with other operator names."""
        return replace(self, version=self.version + 1, operator=dict(operator))

    def resolve(self, asked: str) -> Target:
        """The target that answers to a model name.

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

    def _unknown(self, asked: str) -> str:
        if _OPERATOR_NAME.fullmatch(asked):
            how = f'POST /llmops/adapters {{"adapter": "{asked}"}}'
            return f"model {asked} is not loaded; {how} loads a registered adapter"
        known = ", ".join(sorted((*self.names, *self.operator))) or "none"
        return f"model {asked[:100]!r} does not exist; models here: {known}"


class Live:
    """What the relay reads at every request and control alone changes: the table in force and where the engine is.

    `in_flight` counts the requests that run on each adapter or base, by digest.
    """

    def __init__(self) -> None:
        """Begin with the empty table of an engine that is starting."""
        self.table = RouteTable()
        self.engine_url = ""
        self.in_flight: Counter[str] = Counter()
