"""Judging a session: every showing is asked, kept before it is counted, and the set of judgements stored.

Reads the judge's file, reports and their answers; asks the judge's endpoint; writes the session's folder, the store
(kind `judgements` and a record) and the ledger (`judged`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llmops.errors import BadRequest, CouldNotRun
from llmops.evals.evidence import BOUND_LEVEL
from llmops.evals.judge.asking import JudgeClient, Reply
from llmops.evals.judge.config import PairwiseConfig
from llmops.evals.judge.kept import JudgementFile, Key, put_judgements
from llmops.evals.judge.load import Judge
from llmops.evals.judge.pairwise import Compared, compared, pairwise_figures
from llmops.evals.judge.parse import parse
from llmops.evals.judge.prompt import Showing, render
from llmops.evals.judge.rubric import How, Scored, rubric_figures
from llmops.evals.judge.subject import Subject, names_of, require_other
from llmops.records import Figure, Judgement, JudgementSet
from llmops.registry.adapters import Registry
from llmops.schema import Progress, digest_of, no_progress, short
from llmops.settings import Workspace, now

OWN_FAMILY = (
    "the judge may share its base model with the systems: it is asked at this workspace's own endpoint"
)


@dataclass(frozen=True)
class Ask:
    """One question to a judge: what is shown, for which time, and the prompt with its digest."""

    showing: Showing
    repeat: int
    prompt: str

    @property
    def key(self) -> Key:
        """What its judgement is found by."""
        return self.showing.case.digest, self.showing.shown, self.repeat, digest_of(self.prompt)


def judge_answers(
    judge: Judge, url: str, subject: Subject, workspace: Workspace, progress: Progress = no_progress
) -> JudgementSet:
    """Have a subject's answers judged at `url`; store what was said. What was judged before is not asked again.

    Raises:
        BadRequest: the judge is one of the systems, its endpoint refuses, or another process judges the session.
        ConfigError: its key is not set, or its template cannot be filled in.
        CouldNotRun: its endpoint does not answer; what it said is kept, and the same command goes on from there.
    """
    registry = Registry.of(workspace)
    judged = names_of(registry, subject)
    require_other(judge.config.endpoint.model, judged, f"judge {judge.config.name}")
    asks = questions(judge, subject)
    with _file(workspace, judge, subject) as kept:
        asyncio.run(_Asking(judge, url, kept, judged, progress).all(asks))
        said = [kept.found[ask.key] for ask in asks]
    record = judgement_set(registry, judge, url, subject, said)
    body = {
        "judgements": registry.store.put_record(record),
        "judge": record.judge,
        "judge_digest": record.judge_digest,
        "session": record.session,
    }
    registry.ledger.append("judged", body)
    return record


def questions(judge: Judge, subject: Subject) -> list[Ask]:
    """Every question, case by case: both orders of a comparison, each answer and repeat of a rubric.

    Raises:
        ConfigError: the template cannot be filled in.
    """
    config = judge.config
    if isinstance(config, PairwiseConfig):
        showings = [(showing, 0) for pair in subject.pairs() for showing in pair]
    else:
        rows = zip(subject.cases, zip(*subject.answers, strict=True), strict=True)
        answered = [(case, row) for case, row in rows if all(answer.status == "answered" for answer in row)]
        showings = [
            (Showing(case, (answer,)), repeat)
            for case, row in answered
            for answer in row
            for repeat in range(config.repeats)
        ]
    return [Ask(showing, repeat, render(judge.template, config, showing)) for showing, repeat in showings]


def judgement_set(
    registry: Registry, judge: Judge, url: str, subject: Subject, said: Sequence[Judgement]
) -> JudgementSet:
    """The record of all judgements, which it stores; `said` is in the order of `questions`."""
    figures, n_judged, n_errored = counted(judge, subject, said)
    first = subject.reports[0]
    answered = [judgement for judgement in said if judgement.model or judgement.fingerprint]
    fingerprints = tuple(sorted({j.fingerprint for j in answered if j.fingerprint}))
    return JudgementSet(
        judge=judge.config.name,
        kind=judge.config.kind,
        judge_digest=judge.digest,
        template=judge.template_digest,
        endpoint=url,
        model=judge.config.endpoint.model,
        answered_by=tuple(sorted({j.model for j in answered if j.model})),
        fingerprints=fingerprints,
        decoding=judge.config.decoding.model_dump(mode="json"),
        session=first.session,
        suite=first.suite,
        suite_digest=first.suite_digest,
        reports=tuple(report.digest() for report in subject.reports),
        systems=tuple(report.system for report in subject.reports),
        judgements=put_judgements(registry.store, said),
        n_cases=len(subject.cases),
        n_unanswered=subject.n_unanswered,
        n_same=subject.n_same if judge.config.kind == "pairwise" else 0,
        n_judged=n_judged,
        n_errored=n_errored,
        figures=figures,
        invalid=tuple(faults(judge, n_judged, n_errored, said)),
        notes=tuple(_notes(judge, fingerprints)),
        created_at=now(),
    )


def counted(judge: Judge, subject: Subject, said: Sequence[Judgement]) -> tuple[tuple[Figure, ...], int, int]:
    """The figures of judgements in the order of `questions`, how many cases were judged, and how many errored."""
    if isinstance(judge.config, PairwiseConfig):
        outcomes = comparisons(subject, said)
        pairs = [case for case in outcomes if case is not None]
        clusters = subject.clusters_of(case.case for case in pairs)
        return pairwise_figures(pairs, BOUND_LEVEL, clusters), len(pairs), len(outcomes) - len(pairs)
    cases = _scored(said, len(subject.reports) * judge.config.repeats)
    whole = [case for case in cases if case is not None]
    systems = [report.system for report in subject.reports]
    how = How(BOUND_LEVEL, subject.clusters_of(case.case for case in whole))
    return rubric_figures(judge.config, whole, systems, how), len(whole), len(cases) - len(whole)


def comparisons(subject: Subject, said: Sequence[Judgement]) -> list[Compared | None]:
    """What each pair of `subject.pairs()` comes to; None where a judgement of it errored."""
    return [
        compared(pair[0], forward, backward)
        for pair, forward, backward in zip(subject.pairs(), said[::2], said[1::2], strict=True)
    ]


def faults(judge: Judge, n_judged: int, n_errored: int, said: Sequence[Judgement]) -> list[str]:
    """Why judgements are no evidence: too many errored, or too few cases were judged."""
    found, n = [], n_judged + n_errored
    if n_errored > judge.config.max_errored_frac * n:
        first = next(j for j in said if j.status == "errored")
        found.append(
            f"{n_errored} of {n} cases got no judgement (allowed: {judge.config.max_errored_frac:.1%}), "
            f"first: {first.error}"
        )
    if n_judged < 2:
        found.append(f"{n_judged} cases were judged; nothing can be estimated from fewer than 2")
    return found


def _scored(said: Sequence[Judgement], n_each: int) -> list[Scored | None]:
    cases: list[Scored | None] = []
    for start in range(0, len(said), n_each):
        own = said[start : start + n_each]
        systems: dict[str, tuple[Judgement, ...]] = {}
        for judgement in own:
            systems[judgement.shown[0]] = (*systems.get(judgement.shown[0], ()), judgement)
        whole = all(judgement.status == "judged" for judgement in own)
        cases.append(Scored(own[0].case, systems) if whole else None)
    return cases


def _notes(judge: Judge, fingerprints: Sequence[str]) -> Iterator[str]:
    if judge.config.endpoint.url is None:
        yield OWN_FAMILY
    if len(fingerprints) > 1:
        yield f"the judge's endpoint changed while it judged: fingerprints {', '.join(fingerprints)}"


@contextmanager
def _file(workspace: Workspace, judge: Judge, subject: Subject) -> Iterator[JudgementFile]:
    """The session's file of this judge's judgements, held against other processes."""
    from filelock import FileLock, Timeout

    folder = workspace.runs / subject.reports[0].session
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"judgements-{judge.config.name}-{short(judge.digest)}.jsonl"
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadRequest(
            f"judge {judge.config.name}: another process judges {folder.name}; wait for it"
        ) from None
    try:
        yield JudgementFile(path)
    finally:
        lock.release()


class _Asking:
    """Questions under way; the first that finds no endpoint ends them all."""

    def __init__(
        self, judge: Judge, url: str, kept: JudgementFile, judged: frozenset[str], progress: Progress
    ) -> None:
        self.judge, self.kept, self.judged, self.progress = judge, kept, judged, progress
        self.client = JudgeClient(url, judge.config)
        self.n_done = self.n_errored = self.n_all = 0

    async def all(self, asks: Sequence[Ask]) -> None:
        """Ask what is not kept yet; an errored one is asked again."""
        found = self.kept.found
        todo = [a for a in asks if (j := found.get(a.key)) is None or j.status == "errored"]
        self.n_all, self.n_done = len(asks), len(asks) - len(todo)
        self.progress(self.n_done, self.n_all, "judgements")
        waiting = iter(todo)

        async def work() -> None:
            for ask in waiting:
                await self._one(ask)

        async with self.client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.judge.config.endpoint.concurrency, len(todo))):
                        group.create_task(work())
            except ExceptionGroup as errors:  # several questions fail alike: one error says it
                raise errors.exceptions[0] from None

    async def _one(self, ask: Ask) -> None:
        try:
            reply = await self.client.ask(ask.prompt, ask.repeat)
        except CouldNotRun as error:
            raise CouldNotRun(
                f"{error}; {self.n_done:,} of {self.n_all:,} judgements are kept: start it, then run the command again"
            ) from None
        for name in (reply.model, reply.answered_by):
            require_other(name, self.judged, self.client.where)
        judgement = _judgement(self.judge, ask, reply)
        self.kept.add(judgement)
        self.n_done += 1
        self.n_errored += judgement.status == "errored"
        note = f"judgements, {self.n_errored} errored" if self.n_errored else "judgements"
        self.progress(self.n_done, self.n_all, note)


def _judgement(judge: Judge, ask: Ask, reply: Reply) -> Judgement:
    case, shown, repeat, prompt = ask.key
    said = parse(judge.config, reply.text)
    error = reply.error or said.error
    if said.error and reply.finish_reason == "length":
        error = f"cut at decoding.max_tokens ({judge.config.decoding.max_tokens}) before it said anything"
    return Judgement(
        case=case,
        shown=shown,
        repeat=repeat,
        prompt=prompt,
        status="errored" if error else "judged",
        verdict=None if error else said.verdict,
        scores={} if error else said.scores,
        text=reply.text,
        finish_reason=reply.finish_reason,
        format=reply.format,
        model=reply.model,
        answered_by=reply.answered_by,
        fingerprint=reply.fingerprint,
        n_prompt_tokens=reply.n_prompt_tokens,
        n_completion_tokens=reply.n_completion_tokens,
        latency_s=reply.latency_s,
        error=error,
    )
