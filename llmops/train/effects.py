"""What a trained adapter does, measured from its saved files: probes, and how far it is from base and parent."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from llmops.records import Probes, RewardProbes
from llmops.train.plan import Plan
from llmops.train.probes import change_nats, choose_probes, compute_probes, require_change, require_effect
from llmops.train.recipe import Reward
from llmops.train.rewards import compute_reward_probes, require_spread


def measure(planned: Plan, folder: Path) -> tuple[Probes | RewardProbes, dict[str, float]]:
    """Probes of the saved adapter, and by how much it differs from its base and from the adapter it continues.

    Raises:
        TrainingFailed: it does not differ.
    """
    where = f"adapter {planned.recipe.name}"
    if isinstance(planned.recipe.method, Reward):
        pairs = (*planned.examples.held_out, *planned.examples.train)
        rewards = compute_reward_probes(planned.base.path, folder, pairs, planned.device)
        return rewards, {"reward_spread": require_spread(rewards, where)}
    examples = chain(planned.examples.held_out, planned.examples.train)
    token_ids = choose_probes(example.token_ids for example in examples)
    probes = compute_probes(planned.base.path, folder, token_ids, planned.device)
    effects = {"effect_nats": require_effect(probes, where)}
    if planned.parent:
        change = change_nats(probes, planned.base.path, planned.parent.folder, planned.device)
        where += f", which continues {planned.parent.record.model_name}"
        effects["effect_over_parent_nats"] = require_change(change, where)
    return probes, effects
