"""What answers at an endpoint, and what it made of a case as one completion.

Values alone; what asks is `llmops.engines.endpoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmops.engines.answers import Said
from llmops.records import Case, Completion


@dataclass(frozen=True)
class System:
    """Something that answers: its name at the endpoint, and the digests its answers must carry."""

    model: str
    digest: str
    prompt_contract: str


def completion(system: System, case: Case, sample: int, answers: Sequence[Said]) -> Completion:
    """The answers to all turns of a case as one completion; a turn that another model gave is the one it names."""
    last = answers[-1]
    from_ = next((a.headers for a in answers if a.headers["model"] != system.digest), last.headers)
    return Completion(
        case=case.digest,
        system=system.model,
        status="answered",
        text=last.text,
        finish_reason=last.finish_reason,
        n_prompt_tokens=sum(a.n_prompt_tokens for a in answers),
        n_completion_tokens=sum(a.n_completion_tokens for a in answers),
        latency_s=round(sum(a.latency_s for a in answers), 4),
        answered_by=from_["model"],
        prompt_contract=from_["prompt-contract"],
        sample=sample,
        earlier=tuple(a.text for a in answers[:-1]),
        tool_calls=last.tool_calls,
    )


def errored(system: System, case: Case, sample: int, reason: str, latency_s: float) -> Completion:
    """A case that was not answered, with the reason; never a text to score or to show."""
    latency_s = round(latency_s, 4)
    return Completion(
        case.digest, system.model, "errored", "", None, 0, 0, latency_s, None, None, reason, sample
    )
