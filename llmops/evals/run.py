"""Running suites: systems are loaded, asked, scored, and leave one report each for every suite.

Reads suites, the registry and an endpoint; writes the session's folder, the store (kind `completions`,
reports), the ledger (`report.stored`) and the cache of answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llmops.engines.endpoint import Endpoint, EndpointStatus, Patience, System, engine_digest
from llmops.engines.systems import load_adapters, system_of
from llmops.errors import BadRequest, CouldNotRun, LlmopsError
from llmops.evals.cache import AnswerCache
from llmops.evals.evidence import engine_fault
from llmops.evals.gate.declare import declare_gates
from llmops.evals.generate import Job, generate
from llmops.evals.outcome import Taken, evaluated, publish
from llmops.evals.pace import MOST, Climb, Pace
from llmops.evals.references import ReferenceTokens
from llmops.evals.reports.files import PAGE_FILE
from llmops.evals.session import Session, SessionSuite, find_session, new_session
from llmops.evals.suite import Suite, load_suite
from llmops.records import AdapterRecord, Report
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.registry.names import name_states
from llmops.schema import Progress, no_progress, short
from llmops.settings import Workspace

SLOW_FRAC = 0.25
"""Share of the time that one answer may take after which the concurrency grows no more."""


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate: adapters by reference, beside the base and every champion of the same base.

    `session` names one to go on with: what it has answers to is not asked again. `concurrency` is how many questions
    are under way, or `auto`: as many as make it faster, 256 at most. Without `cache` every question is asked.
    `gates` are declared before the first question, with those of `evals/gates/`.
    """

    endpoint: str
    adapters: tuple[str, ...] = ("latest",)
    session: str | None = None
    concurrency: int | Literal["auto"] = "auto"
    cache: bool = True
    gates: tuple[Path, ...] = ()
    patience: Patience = field(default_factory=Patience)


def evaluate(
    suites: Path | Sequence[Path],
    request: EvalRequest,
    workspace: Workspace,
    progress: Progress = no_progress,
) -> list[Report]:
    """Put suites to the base, the champions and the adapters asked for, in one session.

    One report for each suite and system, in that order. Reports that are no evidence are stored too, with the reasons;
    errors below leave none.

    Raises:
        BadRequest: a suite, an adapter or the session does not exist or does not fit.
        InvalidEvidence: a suite's data was altered, or the endpoint refused an adapter.
        CouldNotRun: the endpoint does not answer, or went away; `session` in a next request goes on from
            there.
    """
    registry = Registry.of(workspace)
    declare_gates(workspace, registry.ledger, request.gates)
    paths = [suites] if isinstance(suites, Path) else list(suites)
    asked = _Asked(tuple(load_suite(path, registry) for path in paths), tuple(paths))
    _require_own_names(asked.suites)
    adapters = named_adapters(registry, request.adapters)
    session = find_session(workspace, request.session) if request.session else new_session(workspace)
    with session.locked(), noted(registry, session.name, asked.suites):
        taken = asyncio.run(_take(asked, request, _Systems(registry, workspace, adapters), session, progress))
        found = [
            evaluated(registry, taken, suite, path)
            for suite, path in zip(asked.suites, asked.paths, strict=True)
        ]
        records = [record for _, record in taken.systems]
        return publish(workspace, session, found, lambda _: records)


@contextmanager
def noted(registry: Registry, session: str, suites: Sequence[Suite] = ()) -> Iterator[None]:
    """A session's start, with its suites' digests, and its end in the ledger; `llmops status` and gates read them."""
    digests = {suite.config.name: suite.digest for suite in suites}
    registry.ledger.append("run.started", {"run": session} | ({"suites": digests} if digests else {}))
    try:
        yield
    except BaseException as error:
        with suppress(
            LlmopsError
        ):  # a full disk takes no event either, and the first error is the one to be seen
            registry.ledger.append("run.failed", {"run": session, "error": type(error).__name__})
        raise
    registry.ledger.append("run.finished", {"run": session})


def report_page(workspace: Workspace, session: str) -> Path:
    """Where the HTML page of a session lies."""
    return workspace.runs / session / PAGE_FILE


@dataclass(frozen=True)
class _Asked:
    """The suites of a session, and their files."""

    suites: tuple[Suite, ...]
    paths: tuple[Path, ...]

    def entries(self, workspace: Workspace) -> list[SessionSuite]:
        """As the session writes them down."""
        root = workspace.root.resolve()
        found = []
        for suite, path in zip(self.suites, self.paths, strict=True):
            whole = path.resolve()
            place = whole.relative_to(root) if whole.is_relative_to(root) else whole
            found.append(SessionSuite(suite.config.name, suite.digest, place.as_posix()))
        return found


@dataclass(frozen=True)
class _Systems:
    """The adapters that answer beside their base, and where they are registered."""

    registry: Registry
    workspace: Workspace
    adapters: Sequence[AdapterRecord]


def _require_own_names(suites: Sequence[Suite]) -> None:
    names = [suite.config.name for suite in suites]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice or not names:
        what = (
            f"two suites are called {twice}; give one of them another name" if twice else "no suite; name one"
        )
        raise BadRequest(f"eval: {what}")


def named_adapters(registry: Registry, references: Sequence[str]) -> list[AdapterRecord]:
    """The champions of the asked adapters' base, then the adapters themselves, each once and verified.

    Raises:
        BadRequest: none is named, one is not known, or they have different bases.
        InvalidEvidence: the files of one were altered.
    """
    if not references:
        raise BadRequest("eval: no adapter is named; name one, or `latest`")
    asked = [registry.adapter(reference) for reference in references]
    bases = {record.base for record in asked}
    if len(bases) > 1:
        raise BadRequest(
            f"eval: {', '.join(r.model_name for r in asked)} have different bases; evaluate them one by one"
        )
    states = name_states(registry.store, registry.ledger).values()
    champions = [registry.adapter(s.champion_adapter) for s in states if s.champion_adapter]
    wanted = {record.adapter: record for record in champions if record.base in bases}
    # An adapter that is asked for stands among the candidates, at its own place, also where it is a champion.
    for record in asked:
        wanted.pop(record.adapter, None)
        wanted[record.adapter] = record
    for record in wanted.values():
        registry.verify(record)
    return list(wanted.values())


async def _take(
    asked: _Asked, request: EvalRequest, systems: _Systems, session: Session, progress: Progress
) -> Taken:
    """Load the systems, generate, and compare the engine before and after."""
    fixed = None if request.concurrency == "auto" else request.concurrency
    async with Endpoint(request.endpoint, fixed or MOST, request.patience) as endpoint:
        await load_adapters(endpoint, systems.adapters, progress)
        before = await endpoint.status()
        answering = _answering(before, systems.adapters)
        begun = session.begin(asked.entries(systems.workspace), before.engine)
        job = Job(
            asked.suites,
            tuple(s for s, _ in answering),
            engine_digest(before.engine),
            AnswerCache.of(systems.workspace) if request.cache else None,
            _references(asked.suites, systems, before),
        )
        pace = Pace(Climb(fixed), SLOW_FRAC * request.patience.answer_s)
        await generate(endpoint, job, session, pace, progress)
        after = await _status_after(endpoint, session)
    faults = engine_fault(begun.engine, before.engine, "since the session began")
    faults += engine_fault(before.engine, after.engine, "during the session")
    return Taken(session, before, answering, tuple(faults))


def _answering(
    status: EndpointStatus, adapters: Sequence[AdapterRecord]
) -> tuple[tuple[System, AdapterRecord | None], ...]:
    """The base first, then the adapters, by their names at the endpoint."""
    return ((status.base, None), *((system_of(record, status), record) for record in adapters))


def _references(suites: Sequence[Suite], systems: _Systems, status: EndpointStatus) -> ReferenceTokens | None:
    """What turns references into tokens, where a suite needs their log-probabilities."""
    if not any(suite.needs_reference_logprobs for suite in suites):
        return None
    base = resolve_base(systems.adapters[0].base_ref)
    if base.digest != status.base.digest:
        raise BadRequest(
            f"base model {base.ref}: is {short(base.digest)} on this machine, the endpoint serves "
            f"{short(status.base.digest)}; fetch the one it serves"
        )
    contracts = {record.model_name: systems.registry.contract(record) for record in systems.adapters}
    return ReferenceTokens(base.path, {status.base.model: base.contract, **contracts})


async def _status_after(endpoint: Endpoint, session: Session) -> EndpointStatus:
    try:
        return await endpoint.status()
    except CouldNotRun as error:
        raise CouldNotRun(f"{error}; all answers are kept, finish with --resume {session.name}") from error
