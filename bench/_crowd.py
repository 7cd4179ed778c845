"""Many raters at one rating page over HTTP, each voting every few seconds: how long a submit takes, what was saved."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

CALL = "/gradio_api/component_server/"


@dataclass(frozen=True)
class Crowd:
    """How many raters there are, how often each votes, and for how long."""

    n_raters: int = 100
    every_s: float = 5.0
    for_s: float = 60.0
    seed: int = 0


@dataclass
class Voted:
    """Times of the submits, what the page called saved (number -> rater, showing, choice), and what went wrong."""

    submit_ms: list[float] = field(default_factory=list)
    saved: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    n_doubled: int = 0  # numbers that were told twice


async def vote(url: str, crowd: Crowd) -> Voted:
    """Rate at a page until the time is over."""
    voted = Voted()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        component = await component_of(session)
        end = time.monotonic() + crowd.for_s
        await asyncio.gather(
            *(_rater(session, component, crowd, i, end, voted) for i in range(crowd.n_raters))
        )
    return voted


async def call_only(url: str, crowd: Crowd) -> list[float]:
    """The same rhythm of calls to a page whose function `rate_item` does nothing; milliseconds a call."""
    times: list[float] = []

    async def caller(i: int) -> None:
        moments = random.Random(f"{crowd.seed} {i}")
        while True:
            await asyncio.sleep(moments.uniform(0.5, 1.5) * crowd.every_s)
            if time.monotonic() > end:
                return
            begun = time.perf_counter()
            await call(session, component, "rate_item", {"rater": f"rater {i}", "choice": "a"})
            times.append(1000 * (time.perf_counter() - begun))

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        component = await component_of(session)
        end = time.monotonic() + crowd.for_s
        await asyncio.gather(*(caller(i) for i in range(crowd.n_raters)))
    return times


async def component_of(session: aiohttp.ClientSession) -> int:
    """The id of the page's one HTML component, as Gradio numbers it."""
    async with session.get("/config") as reply:
        parts = (await reply.json())["components"]
    return int(next(part["id"] for part in parts if part["type"] == "html"))


async def call(
    session: aiohttp.ClientSession, component: int, name: str, data: dict[str, Any]
) -> dict[str, Any]:
    """One call of a server function through Gradio's API; once more where the server had just closed the connection."""
    body = {"data": data, "component_id": component, "fn_name": name, "session_hash": str(data.get("rater"))}
    try:
        return await _posted(session, body)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
        return await _posted(session, body)


async def _posted(session: aiohttp.ClientSession, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(CALL, json=body, timeout=aiohttp.ClientTimeout(total=120)) as reply:
        found: dict[str, Any] = await reply.json()
        return found if reply.status == 200 else {"error": f"HTTP {reply.status}"}


async def _rater(
    session: aiohttp.ClientSession, component: int, crowd: Crowd, i: int, end: float, voted: Voted
) -> None:
    name, moments = f"rater {i}", random.Random(f"{crowd.seed} {i}")
    reply = await call(session, component, "next_item", {"rater": name})
    while reply.get("item"):
        await asyncio.sleep(moments.uniform(0.5, 1.5) * crowd.every_s)
        if time.monotonic() > end:
            return
        choice, showing = moments.choice(["a", "b", "tie", "both_bad"]), reply["item"]["showing"]
        said = {
            "rater": name,
            "showing": showing,
            "choice": choice,
            "key": f"{moments.getrandbits(128):032x}",
        }
        begun = time.perf_counter()
        reply = await call(session, component, "rate_item", said)
        voted.submit_ms.append(1000 * (time.perf_counter() - begun))
        if "saved" not in reply:
            voted.errors.append(str(reply.get("error")))
            return
        voted.n_doubled += reply["saved"] in voted.saved
        voted.saved[reply["saved"]] = (name, showing, choice)
    if reply.get("error"):
        voted.errors.append(str(reply["error"]))
