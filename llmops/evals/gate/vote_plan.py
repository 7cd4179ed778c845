"""What a gate asks of its votes, in the words of a campaign."""

from __future__ import annotations

from llmops.evals.gate.config import GateConfig
from llmops.records import VotePlan


def vote_plan(gate: GateConfig) -> VotePlan | None:
    """What a gate asks of its votes, as the campaign that is opened for it carries it; None where it asks for none."""
    rules = gate.ratings
    if rules is None:
        return None
    agreement = rules.agreement.min_items if rules.agreement else None
    return VotePlan(
        looks=rules.looks,
        min_items=rules.min_items,
        min_raters=rules.min_raters,
        agreement_items=agreement,
        kind=rules.win_rate.kind,
        threshold=rules.win_rate.threshold,
        level=gate.level,
        power=gate.power,
    )
