"""`llmops batch`: the requests of a file, put to an endpoint at low priority, each until it is answered.

A busy or restarting endpoint is asked again for as long as the batch may take; what it refuses is an answer, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson

from llmops.engines.answers import wait_of
from llmops.errors import BadRequest, CouldNotRun, LlmopsError
from llmops.schema import JsonDict, Progress
from llmops.serving.batch_file import Answers, BatchRequest, open_answers, read_requests

FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 10.0
GONE_AFTER_S = 60.0
ANSWER_S = 3600.0


@dataclass(frozen=True)
class BatchPlan:
    """What to ask where: requests under way at once, seconds until the rest expires, and who asks."""

    source: Path
    out: Path
    url: str
    concurrency: int = 8
    window_s: float = 86_400.0
    gone_after_s: float = GONE_AFTER_S
    retry_failed: bool = False
    key: str | None = None


@dataclass(frozen=True)
class BatchDone:
    """How it went: rows in the output, and those of them without an answer of status 200."""

    n_requests: int
    n_failed: int


def run_batch(plan: BatchPlan, progress: Progress) -> BatchDone:
    """Ask all requests that have no row yet.

    Raises:
        BadRequest, DataError: input or output file cannot be used; nothing was asked.
        CouldNotRun: the endpoint does not answer at all; what was answered is kept, and the next run goes on.
    """
    with open_answers(plan.out, plan.retry_failed) as answers:
        n_all = n_open = 0
        for request in read_requests(plan.source):
            n_all += 1
            n_open += not answers.has(request)
        if n_open:
            batch = _Batch(plan, answers, lambda: progress(len(answers), n_all, ""))
            try:
                asyncio.run(batch.run())
            except* LlmopsError as failed:
                raise failed.exceptions[0] from None
        return BatchDone(n_all, answers.n_failed)


class _Batch:
    """One run over one input file."""

    def __init__(self, plan: BatchPlan, answers: Answers, report: Callable[[], None]) -> None:
        self._plan = plan
        self._answers = answers
        self._report = report
        self._expires = time.monotonic() + plan.window_s
        self._last_word = time.monotonic()  # when the endpoint last said anything
        self._session: aiohttp.ClientSession | None = None

    async def run(self) -> None:
        """Ask until every request has a row."""
        headers = {"content-type": "application/json", "x-llmops-priority": "low"}
        if self._plan.key:
            headers["authorization"] = f"Bearer {self._plan.key}"
        pending = (r for r in read_requests(self._plan.source) if not self._answers.has(r))
        timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=10)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            self._session = session
            async with asyncio.TaskGroup() as group:
                for _ in range(self._plan.concurrency):
                    group.create_task(self._work(pending))

    async def _work(self, pending: Iterator[BatchRequest]) -> None:
        for request in pending:
            await self._settle(request)
            self._report()

    async def _settle(self, request: BatchRequest) -> None:
        """Ask until there is a row to write."""
        wait_s = FIRST_WAIT_S
        while time.monotonic() < self._expires:
            found = await self._ask(request)
            if not isinstance(found, float):
                return self._answers.add(request, found, None)
            if time.monotonic() - self._last_word > self._plan.gone_after_s:
                raise CouldNotRun(
                    f"batch: {self._plan.url} has not answered for {self._plan.gone_after_s:g} s; "
                    "start it and run the same command again, it goes on where it stopped"
                )
            await asyncio.sleep(max(found, wait_s))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        error = {"code": "batch_expired", "message": "not answered before the batch's time was over"}
        return self._answers.add(request, None, error)

    async def _ask(self, request: BatchRequest) -> JsonDict | float:
        """The row's response, or the seconds that the endpoint asks to wait (0: it did not say)."""
        assert self._session is not None
        try:
            async with self._session.post(self._plan.url + request.path, data=request.body) as answer:
                raw = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 0.0
        self._last_word = time.monotonic()
        if answer.status == 401:
            raise BadRequest(
                f"batch: {self._plan.url} does not know the key; set LLMOPS_API_KEY and run again"
            )
        again = answer.headers.get("retry-after")
        if answer.status in (429, 503) and again is not None:
            return wait_of(again)
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = {"error": {"message": raw[:500].decode(errors="replace"), "type": "not_json"}}
        return {
            "status_code": answer.status,
            "request_id": answer.headers.get("x-request-id", ""),
            "body": body,
        }


def endpoint_url(given: str | None, running: str | None) -> str:
    """The endpoint's address without `/v1`.

    Raises:
        BadRequest: none was given and nothing serves in this workspace.
    """
    url = given or running
    if url is None:
        raise BadRequest("batch: nothing serves in this workspace; start `llmops serve`, or give --url")
    return url.rstrip("/").removesuffix("/v1")
