"""What a judge said of two reports, found again and believed only after it was checked against everything.

For decisions: the stored set must be about exactly these reports and this judge's file as it is now; prompts are
rendered again, and verdicts read again from the judge's own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmops.errors import InvalidEvidence
from llmops.evals.judge.kept import key_of, load_judgements
from llmops.evals.judge.load import Judge
from llmops.evals.judge.pairwise import Compared
from llmops.evals.judge.parse import parse
from llmops.evals.judge.run import comparisons, faults, questions
from llmops.evals.judge.subject import Subject, subject_of
from llmops.records import Judgement, JudgementSet, Report
from llmops.registry.adapters import Registry


@dataclass(frozen=True, eq=False)
class Reviewed:
    """A verified set: `judged[i]` is about `subject.pairs()[i]`, None where a judgement errored.

    `faults` say why it is no evidence: a judge that was away or mostly errored could not check anything.
    """

    record: JudgementSet
    subject: Subject
    judged: tuple[Compared | None, ...]
    faults: tuple[str, ...]


def find_reviewed(registry: Registry, judge: Judge, reports: Sequence[str]) -> Reviewed | None:
    """The newest set of a pairwise judge about two reports (digests: candidate, baseline); None when there is none.

    Raises:
        InvalidEvidence: the set, a report or an answer is gone or was altered, or does not say what its record says.
    """
    record = _newest(registry, judge, tuple(reports))
    if record is None:
        return None
    subject = subject_of(registry, [registry.store.get_record(Report, digest) for digest in reports])
    said = load_judgements(registry.store, record.judgements)
    where = f"judgements of {record.judge}"
    asked = [ask.key for ask in questions(judge, subject)]
    if [key_of(judgement) for judgement in said] != asked:
        raise InvalidEvidence(f"{where}: are not about these answers, one by one; judge them again")
    for judgement in said:
        if judgement.verdict != _verdict(judge, judgement):
            raise InvalidEvidence(
                f"{where}: {judgement.verdict} is not what the judge's own words say ({judgement.text[:100]!r}); judge "
                "again"
            )
    judged = comparisons(subject, said)
    n_judged = sum(case is not None for case in judged)
    return Reviewed(
        record, subject, tuple(judged), tuple(faults(judge, n_judged, len(judged) - n_judged, said))
    )


def _newest(registry: Registry, judge: Judge, reports: tuple[str, ...]) -> JudgementSet | None:
    for event in reversed(registry.ledger.events("judged")):
        if event.body["judge_digest"] == judge.digest:
            record = registry.store.get_record(JudgementSet, str(event.body["judgements"]))
            if record.reports == reports:
                return record
    return None


def _verdict(judge: Judge, judgement: Judgement) -> str | None:
    return None if judgement.status == "errored" else parse(judge.config, judgement.text).verdict
