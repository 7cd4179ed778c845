"""One system asked twice: pairs of answers to a gate's suites whose difference is chance, from the user's own server.

The answers lie in a session's folder of their own (`calibrate-...`); no report is made of them and the ledger is not
told, so that no gate can decide on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmops.engines.endpoint import Endpoint, Patience, System, engine_digest
from llmops.engines.systems import load_adapters, system_of
from llmops.errors import InvalidEvidence
from llmops.evals.compare import pair
from llmops.evals.evidence import completion_faults
from llmops.evals.gate.config import load_gate
from llmops.evals.generate import Job, generate
from llmops.evals.pace import MOST, Climb, Pace
from llmops.evals.session import Session, SessionSuite, new_session
from llmops.evals.suite import Suite, load_suite
from llmops.registry.adapters import Registry
from llmops.schema import Progress
from llmops.settings import Workspace

if TYPE_CHECKING:
    from llmops.evals.compare import Paired
    from llmops.records import AdapterRecord, Completion

SLOW_FRAC = 0.2


@dataclass(frozen=True)
class Twice:
    """Whom to ask where, and how many times twice."""

    endpoint: str
    adapter: str = "latest"
    n_runs: int = 8
    patience: Patience = field(default_factory=Patience)


def ask_twice(
    gate_path: Path, asked: Twice, workspace: Workspace, progress: Progress
) -> list[dict[str, Paired]]:
    """Put every case to the adapter 2 * n_runs times, by rising seeds; the runs' pairs of answers by suite.

    Raises:
        BadRequest: the gate, a suite or the adapter do not exist.
        InvalidEvidence: another model answered, or cases errored.
        CouldNotRun: the endpoint does not answer.
    """
    registry, gate = Registry.of(workspace), load_gate(gate_path)
    record = registry.adapter(asked.adapter)
    suites = {name: load_suite(gate_path.parent / file, registry) for name, file in gate.files.items()}
    repeated = {name: _repeated(suite, 2 * asked.n_runs) for name, suite in suites.items()}
    session = new_session(workspace, "calibrate")
    with session.locked():
        system = asyncio.run(_ask(record, asked, tuple(repeated.values()), session, progress))
        kept = {name: _samples(session, suite, system) for name, suite in repeated.items()}
    return [{name: _run(suites[name], kept[name], k) for name in suites} for k in range(asked.n_runs)]


def _repeated(suite: Suite, times: int) -> Suite:
    """The suite with so many times its samples; sample i is drawn with the suite's seed + i."""
    return replace(suite, config=suite.config.model_copy(update={"samples": times * suite.config.samples}))


async def _ask(
    record: AdapterRecord, asked: Twice, suites: tuple[Suite, ...], session: Session, progress: Progress
) -> System:
    async with Endpoint(asked.endpoint, MOST, asked.patience) as endpoint:
        await load_adapters(endpoint, [record], progress)
        status = await endpoint.status()
        system = system_of(record, status)
        session.begin([SessionSuite(s.config.name, s.digest, "") for s in suites], status.engine)
        job = Job(suites, (system,), engine_digest(status.engine))
        pace = Pace(Climb(), SLOW_FRAC * asked.patience.answer_s)
        await generate(endpoint, job, session, pace, progress)
    return system


def _samples(session: Session, suite: Suite, system: System) -> list[tuple[Completion, ...]]:
    """Every case's answers, all of which must be there and the system's own."""
    found = session.completions(suite)
    samples = [
        tuple(found[case.digest, system.model, i] for i in range(suite.config.samples))
        for case in suite.cases
    ]
    faults = completion_faults(samples, system.digest, system.prompt_contract, 0.0)
    if faults:
        raise InvalidEvidence(
            f"calibrate: suite {suite.config.name}: {faults[0]}; mend the endpoint, then ask again"
        )
    return samples


def _run(suite: Suite, samples: Sequence[tuple[Completion, ...]], k: int) -> Paired:
    """The k-th run: two lots of answers to the same cases."""
    n = suite.config.samples
    lots = [[own[start : start + n] for own in samples] for start in (2 * k * n, (2 * k + 1) * n)]
    found = pair(suite.metrics, suite.cases, lots[0], lots[1], suite.clusters)
    if found is None:
        raise InvalidEvidence(f"calibrate: suite {suite.config.name} has fewer than 2 cases; add cases")
    return found
