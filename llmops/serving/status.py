"""What a gateway says of itself at `/llmops/status`: engine, base, names, who answers under them, adapters, counts."""

from __future__ import annotations

import os

from llmops.errors import LlmopsError
from llmops.schema import JsonDict
from llmops.serving.control import Control
from llmops.serving.fleet import Fleet, Loaded, proof_fields
from llmops.serving.keeper import Keeper
from llmops.serving.routes import Live, Route


def status_of(control: Control, live: Live, counts: JsonDict) -> JsonDict:
    """What serves; `engine`, `base` and `adapters` are empty while the engine is away. `counts` are told as is."""
    table = live.table
    names = {name: _route_status(route, control.rollouts.status(name)) for name, route in table.names.items()}
    status: JsonDict = {
        "pid": os.getpid(), "down": table.down, "engine": None, "engine_process": None, "base": None, "adapters": [],
        "routes": {"version": table.version, "names": names}, "engines": _engines(control),
        "gateway": {"leads": control.names.leads(), "n_others": control.seat.n_others},
        **counts,
    }  # fmt: skip
    try:
        return status | _engine_status(control.fleet)
    except LlmopsError:
        return status


def status_on(keeper: Keeper) -> JsonDict:
    """What one engine, serving or standing by, is and has loaded; as `status_of` says it.

    Raises:
        EngineFailed: it is not running at the moment.
    """
    return {"pid": os.getpid(), "down": keeper.side.table.down, **_engine_status(keeper.fleet)}


def _engines(control: Control) -> list[JsonDict]:
    """The engines by their colour, the one that serves first."""
    engines = control.keeper
    other = "green" if engines.serving_is == "blue" else "blue"
    found = [_one_engine(engines.serving, engines.serving_is, True)]
    return found if engines.standby is None else [*found, _one_engine(engines.standby, other, False)]


def _one_engine(keeper: Keeper, colour: str, serves: bool) -> JsonDict:
    said: JsonDict = {
        "colour": colour, "serves": serves, "down": keeper.side.table.down, "digest": keeper.engine_digest,
        "n_requests": keeper.side.in_flight.total(), "engine": None, "adapters": [],
    }  # fmt: skip
    try:
        fleet = keeper.fleet
    except LlmopsError:
        return said
    names = [entry.record.model_name for entry in fleet.loaded]
    return said | {"engine": fleet.session.signature.to_pairs(), "adapters": names}


def _engine_status(fleet: Fleet) -> JsonDict:
    base, process = fleet.session.base, fleet.session.process
    return {
        "engine": fleet.session.signature.to_pairs(),
        "base": {
            "model": base.model_name,
            "digest": base.digest,
            "prompt_contract": base.contract.digest(),
        },
        "engine_process": {
            "pid": process.pid,
            "url": process.url,
            "log": process.log_path and str(process.log_path),
        },
        "adapters": [_adapter_status(entry, fleet) for entry in fleet.loaded],
    }


def _adapter_status(entry: Loaded, fleet: Fleet) -> JsonDict:
    return {
        "model": entry.record.model_name, "adapter": entry.record.adapter, "proof": proof_fields(entry.proof),
        "prompt_contract": entry.record.prompt_contract, "n_requests": fleet.side.in_flight[entry.record.adapter],
    }  # fmt: skip


def _route_status(route: Route, rollouts: list[JsonDict]) -> JsonDict:
    return {
        "adapter": route.adapter, "model": route.target.engine_name if route.target else None, "release": route.release,
        "ok": route.target is not None, "reason": route.reason, "rollouts": rollouts,
    }  # fmt: skip
