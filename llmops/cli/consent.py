"""What people said about a decision, in words: votes and approvals, for the commands that show decisions."""

from __future__ import annotations

from llmops.errors import InvalidEvidence
from llmops.records import Campaign, Decision, RatingEvidence
from llmops.registry.adapters import Registry
from llmops.registry.approvals import approvals_of
from llmops.schema import short


def votes_in_words(registry: Registry, votes: RatingEvidence) -> str:
    """How many people said what about how many items, and in which campaign."""
    said = votes.outcomes
    share = 100 * said["both_bad"] / votes.n_rated
    return (
        f"{_count(votes.n_rated, 'item')} of {votes.n_items} rated by {_count(votes.n_raters, 'rater')} "
        f"({_count(votes.n_votes, 'vote')}): {said['first']} for the candidate, {said['second']} for the baseline, "
        f"{said['tie']} ties, {said['both_bad']} both bad ({share:.1f} %), {said['split']} split; "
        f"campaign {_campaign(registry, votes.campaign)}"
    )


def win_rate_in_words(decision: Decision) -> str | None:
    """The win rate with its interval and the number of items; None when the gate asks for no votes."""
    for check in decision.checks:
        if check.metric == "win_rate":
            if decision.ratings is None:
                return f"not counted yet, {check.n_cases} of {check.n_needed} items rated"
            low, high = check.baseline + check.low, check.baseline + check.high
            return (
                f"win rate {check.candidate:.1f} % [{low:.1f}, {high:.1f}] on {_count(check.n_cases, 'item')}"
            )
    return None


def approvals_in_words(registry: Registry, decision: Decision) -> str:
    """How many approvals of how many, and whose; a record that broke is said, not raised."""
    try:
        given = approvals_of(registry, decision.digest())
    except InvalidEvidence as error:
        return f"BROKEN: {error}"
    names = ", ".join(approval.approver for approval in given) or "nobody yet"
    return f"{len(given)} of {decision.n_approvals}: {names}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _campaign(registry: Registry, digest: str) -> str:
    try:
        return f"{registry.store.get_record(Campaign, digest).name}@{short(digest)}"
    except InvalidEvidence:
        return f"?@{short(digest)}"
