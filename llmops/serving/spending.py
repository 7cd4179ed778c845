"""What was used, read back from the database: sums of the table `usage` by key, adapter, model, tenant or day."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Engine, func, select

from llmops.tables import access_keys, usage

Group = Literal["key", "adapter", "model", "tenant", "day"]


@dataclass(frozen=True)
class Spent:
    """One group's sum. `what` is the key's id, the adapter's digest, or whatever groups; `name` a key's holder."""

    what: str
    name: str | None
    currency: str
    n_requests: int
    n_errors: int
    n_estimated: int
    n_prompt_tokens: int
    n_completion_tokens: int
    cost: float


def spent(engine: Engine, by: Group, since: str | None = None) -> list[Spent]:
    """Use since a day (YYYY-MM-DD, of UTC), in the order of what groups; two currencies are two groups."""
    what = usage.c[by]
    counts = ("n_requests", "n_errors", "n_estimated", "n_prompt_tokens", "n_completion_tokens", "cost")
    holder = select(access_keys.c.name).where(access_keys.c.id == what).scalar_subquery()
    query = (
        select(what, usage.c.currency, *(func.sum(usage.c[name]).label(name) for name in counts))
        .group_by(what, usage.c.currency)
        .order_by(what, usage.c.currency)
    )
    if by == "key":
        query = query.add_columns(holder.label("holder"))
    if since is not None:
        query = query.where(usage.c.day >= since)
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return [
        Spent(
            what=row[0], name=getattr(row, "holder", None), currency=row.currency, n_requests=int(row.n_requests),
            n_errors=int(row.n_errors), n_estimated=int(row.n_estimated), n_prompt_tokens=int(row.n_prompt_tokens),
            n_completion_tokens=int(row.n_completion_tokens), cost=float(row.cost),
        )
        for row in rows
    ]  # fmt: skip
