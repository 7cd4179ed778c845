"""What all gateways of a database count of a canary, brought together in the table `arm_counts`.

Those that follow write what they counted since they last did; the one that leads takes the rows away and adds them to
its own meter. Counts that were lost on the way, or that a gateway never sent, are missing, and what is missing says
nothing about an arm.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Engine, delete, select

from llmops.db import writing
from llmops.registry.rollouts import RolloutState
from llmops.serving.rollout.meter import ArmCount, Meter
from llmops.settings import now
from llmops.tables import arm_counts


@dataclass(frozen=True)
class Told:
    """What one gateway counted of one arm at one step of a rollout (digest)."""

    rollout: str
    step: int
    arm: str
    counted: ArmCount


def taken(meter: Meter, state: RolloutState) -> list[Told]:
    """What the meter counted of a canary since this was asked last; arms that had no request are left out."""
    counts = meter.take(state.rollout.public_name)
    return [
        Told(state.digest, state.step, arm, counted)
        for arm, counted in counts.items()
        if counted.n_requests or counted.waits_ms
    ]


def tell(engine: Engine, told: Iterable[Told]) -> None:
    """Write what a gateway counted, in one transaction; called in a thread.

    Raises:
        LlmopsError: the database did not take it.
    """
    at = now()
    rows = [
        {
            "at": at, "rollout": one.rollout, "step": one.step, "arm": one.arm, "n_requests": one.counted.n_requests,
            "n_errors": one.counted.n_errors, "waits_ms": json.dumps([round(wait, 3) for wait in one.counted.waits_ms]),
        }
        for one in told
    ]  # fmt: skip
    if rows:
        with writing(engine) as connection:
            connection.execute(arm_counts.insert(), rows)


def collect(engine: Engine) -> list[Told]:
    """Take away what gateways have told, oldest first; called in a thread.

    Raises:
        LlmopsError: the database cannot be read or written; the rows stay.
    """
    with engine.connect() as connection:
        if connection.execute(select(arm_counts.c.id).limit(1)).first() is None:
            return []  # the database's write lock is for those who have something to write
    with writing(engine) as connection:
        rows = connection.execute(delete(arm_counts).returning(arm_counts)).all()
    return [
        Told(row.rollout, row.step, row.arm, ArmCount(row.n_requests, row.n_errors, json.loads(row.waits_ms)))
        for row in sorted(rows, key=lambda row: row.id)
    ]
