"""Generation: every system answers every case in one session, case by case, the systems' order alternating.

Interleaving lets whatever changes during a session (load, temperature, a neighbour) fall on all systems
alike. Several suites are asked side by side, each evenly over the whole session. What a cache holds is not asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from llmops.engines.answers import Problem
from llmops.engines.endpoint import Endpoint, System
from llmops.errors import CouldNotRun, DataError, LlmopsError
from llmops.evals.cache import AnswerCache, Setting
from llmops.evals.keeper import Keeper, Kept
from llmops.evals.pace import Pace
from llmops.evals.references import ReferenceTokens
from llmops.evals.session import Session
from llmops.evals.suite import Suite
from llmops.records import Case, Completion
from llmops.schema import Progress

# Questions in a row given up after every retry: the endpoint is gone, and each further one would wait as
# long.
GIVE_UP_AFTER = 3


class Question(NamedTuple):
    """A case put to a system, and which sample of it."""

    suite: Suite
    case: Case
    system: System
    sample: int


@dataclass(frozen=True)
class Job:
    """What is generated: the cases of some suites by each system, on the engine with that signature digest.

    `references` turns references into tokens for suites whose metrics need their log-probabilities. `cache` is None
    where every question is to be asked.
    """

    suites: tuple[Suite, ...]
    systems: tuple[System, ...]
    engine: str
    cache: AnswerCache | None = None
    references: ReferenceTokens | None = None


def questions(job: Job) -> Iterator[Question]:
    """All questions in the order they are asked: the i-th case begins with system i modulo the number of systems."""
    places = [
        ((i + 0.5) / len(suite.cases), s, case)
        for s, suite in enumerate(job.suites)
        for i, case in enumerate(suite.cases)
    ]
    n = len(job.systems)
    for i, (_, s, case) in enumerate(sorted(places, key=lambda place: place[:2])):
        suite = job.suites[s]
        for sample in range(suite.config.samples):
            for k in range(n):
                yield Question(suite, case, job.systems[(i + k) % n], sample)


async def generate(endpoint: Endpoint, job: Job, session: Session, pace: Pace, progress: Progress) -> None:
    """Ask what neither session nor cache has an answer to, and keep every completion as it comes.

    Raises:
        CouldNotRun: the endpoint is gone for good; what was answered stays, and the session can be resumed.
        StoreError: the disk did not take a completion.
    """
    every = list(questions(job))
    todo = _unanswered(every, job, session)
    keeper = Keeper(session, job.cache, (len(every) - len(todo), len(every)), progress)
    try:
        todo = _from_cache(todo, job, keeper)
        keeper.begin()
        await _ask_all(endpoint, job, todo, (keeper, pace))
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    finally:
        await keeper.close()


def _unanswered(every: Sequence[Question], job: Job, session: Session) -> list[Question]:
    answered = {
        (suite.config.name, *key)
        for suite in job.suites
        for key, completion in session.completions(suite).items()
        if completion.status == "answered"
    }
    return [
        q for q in every if (q.suite.config.name, q.case.digest, q.system.model, q.sample) not in answered
    ]


def _from_cache(todo: list[Question], job: Job, keeper: Keeper) -> list[Question]:
    """Hand over what the cache holds; returns what it does not."""
    if job.cache is None:
        return todo
    key_of = _keys(job)
    keys = [key_of(q) for q in todo]
    found = job.cache.get([key for key in keys if key])
    left = []
    for question, key in zip(todo, keys, strict=True):
        answer = found.get(key)
        if answer is None:
            left.append(question)
        else:
            keeper.put(Kept(question.suite, replace(answer, system=question.system.model)))
    return left


def _keys(job: Job) -> Callable[[Question], str]:
    """The cache's key of a question; empty for suites whose metrics need answers of this session."""
    settings = {
        (suite.config.name, system.model): Setting(
            system, job.engine, suite.config.decoding, suite.needs_reference_logprobs
        )
        for suite in job.suites
        if not suite.needs_latency
        for system in job.systems
    }

    def key_of(question: Question) -> str:
        setting = settings.get((question.suite.config.name, question.system.model))
        return setting.key(question.case, question.sample) if setting else ""

    return key_of


async def _ask_all(
    endpoint: Endpoint, job: Job, todo: Sequence[Question], through: tuple[Keeper, Pace]
) -> None:
    keeper, pace = through
    key_of = _keys(job) if job.cache is not None else None

    async def ask(question: Question, entered: float) -> None:
        completion = await _ask(endpoint, job, question)
        pace.leave(1 + completion.n_completion_tokens, entered, endpoint.n_overloaded)
        own = _is_own(completion, question.system)
        keeper.put(Kept(question.suite, completion, key_of(question) if key_of and own else ""))
        if endpoint.n_given_up >= GIVE_UP_AFTER:
            raise CouldNotRun(
                f"endpoint {endpoint.url}: no longer answers ({completion.error}); "
                f"mend it, then run `llmops eval` with --resume {keeper.session.name}"
            )

    async with asyncio.TaskGroup() as group:
        for question in todo:
            group.create_task(ask(question, await pace.enter()))


async def _ask(endpoint: Endpoint, job: Job, question: Question) -> Completion:
    suite, case, system, sample = question
    completion = await endpoint.ask(system, case, suite.config.decoding, job.engine, sample)
    if job.references is None or not suite.needs_reference_logprobs or completion.status == "errored":
        return completion
    try:
        tokens = job.references.of(system, case, completion.earlier)
        found = await endpoint.likelihood(system, tokens.ids, tokens.n_reference, job.engine)
    except DataError as error:
        found = Problem(str(error))
    if isinstance(found, Problem):
        return replace(
            completion, status="errored", text="", error=f"log-probability of the reference: {found.reason}"
        )
    return replace(completion, reference_logprob=found.logprob, n_reference_tokens=found.n_tokens)


def _is_own(completion: Completion, system: System) -> bool:
    """Whether a completion is the system's answer, under its prompt contract."""
    said = completion.answered_by, completion.prompt_contract
    return completion.status == "answered" and said == (system.digest, system.prompt_contract)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Our own error among those of a group, else its first."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [errors]
    while stack:
        error = stack.pop(0)
        if isinstance(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, LlmopsError)), leaves[0])
