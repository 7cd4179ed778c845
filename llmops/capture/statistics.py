"""How much is kept and what was said, by public name and model; counted in the database, no text is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, case, func, select

from llmops.capture.reading import ALL, Filter
from llmops.tables import captures, feedback, responses


@dataclass(frozen=True)
class Line:
    """One public name on one model under one arm."""

    asked: str
    adapter: str
    arm: str | None
    n_responses: int
    n_texts: int
    n_up: int
    n_down: int
    n_scores: int
    mean_score: float | None
    n_preferred: int  # times an answer was preferred to another
    n_corrected: int


@dataclass(frozen=True)
class Standing:
    """Everything together; `keys` counts texts by the id of the key they are encrypted with."""

    lines: tuple[Line, ...]
    n_responses: int
    n_texts: int
    n_text_bytes: int  # before encryption
    n_redacted: int
    n_feedback: int
    oldest_text: str | None
    keys: dict[str, int]


def standing(engine: Engine, wanted: Filter = ALL) -> Standing:
    """What is kept now, of the responses that `wanted` means."""
    conditions = wanted.conditions()
    texts = (
        select(responses, captures).join(captures, captures.c.response == responses.c.id).where(*conditions)
    )
    inner = texts.with_only_columns(
        func.count(), func.sum(captures.c.n_bytes), func.sum(captures.c.n_redacted), func.min(captures.c.at)
    )
    by_key = texts.with_only_columns(captures.c.key, func.count()).group_by(captures.c.key)
    with engine.connect() as connection:
        n_texts, n_bytes, n_redacted, oldest = connection.execute(inner).one()
        keys = {str(key): int(n) for key, n in connection.execute(by_key)}
        lines = _lines(connection, conditions)
    n_feedback = sum(line[1] for line in lines)
    shown = tuple(line[0] for line in lines)
    return Standing(
        shown,
        sum(x.n_responses for x in shown),
        n_texts,
        int(n_bytes or 0),
        int(n_redacted or 0),
        n_feedback,
        oldest,
        keys,
    )


def _lines(connection: Any, conditions: Any) -> list[tuple[Line, int]]:
    by = (responses.c.asked, responses.c.adapter, responses.c.arm)
    counted = (
        select(*by, func.count().label("n_responses"), func.count(captures.c.response).label("n_texts"))
        .outerjoin(captures, captures.c.response == responses.c.id)
        .where(*conditions)
        .group_by(*by)
        .order_by(*by)
    )

    def n_where(condition: Any, name: str) -> Any:
        return func.sum(case((condition, 1), else_=0)).label(name)

    said = (
        select(
            *by,
            func.count().label("n"),
            n_where(feedback.c.thumb == "up", "n_up"),
            n_where(feedback.c.thumb == "down", "n_down"),
            func.count(feedback.c.score).label("n_scores"),
            func.avg(feedback.c.score).label("mean_score"),
            func.count(feedback.c.over).label("n_preferred"),
            n_where(feedback.c.corrected, "n_corrected"),
        )
        .join(feedback, feedback.c.response == responses.c.id)
        .where(*conditions)
        .group_by(*by)
    )
    found = {tuple(row[:3]): row for row in connection.execute(said)}
    lines = []
    for row in connection.execute(counted):
        of = found.get(tuple(row[:3]))
        lines.append((_line(row, of), of.n if of is not None else 0))
    return lines


def _line(counted: Any, said: Any | None) -> Line:
    mean = said.mean_score if said is not None else None
    return Line(
        asked=counted.asked,
        adapter=counted.adapter,
        arm=counted.arm,
        n_responses=counted.n_responses,
        n_texts=counted.n_texts,
        n_up=said.n_up if said is not None else 0,
        n_down=said.n_down if said is not None else 0,
        n_scores=said.n_scores if said is not None else 0,
        mean_score=round(float(mean), 3) if mean is not None else None,
        n_preferred=said.n_preferred if said is not None else 0,
        n_corrected=said.n_corrected if said is not None else 0,
    )
