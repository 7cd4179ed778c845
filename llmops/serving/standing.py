"""Which base and engine a gateway serves: those of its profile, or those that took their place under it.

`llmops engine switch` changes the engine and not the file; the ledger keeps what was switched to. A gateway that starts
again with the old file comes up on the engine that served last.
"""

from __future__ import annotations

import logging

from llmops.records import EngineSettings
from llmops.registry.adapters import Registry
from llmops.registry.engine_moves import settings_in_force
from llmops.schema import short
from llmops.serving.profile import ServeProfile

ENGINE_FIELDS = ("base_model", "engine", "max_model_tokens", "slots", "max_lora_rank")
"""The settings of a profile that make its engine; all others are the gateway's own."""

log = logging.getLogger("llmops.serving")


def settings_of(profile: ServeProfile) -> EngineSettings:
    """The engine's part of a profile.

    >>> settings_of(ServeProfile(base_model="b", engine={"kind": "transformers"})).engine["dtype"]
    'bfloat16'
    """
    return EngineSettings(**profile.model_dump(mode="json", include=set(ENGINE_FIELDS)))


def with_settings(profile: ServeProfile, settings: EngineSettings) -> ServeProfile:
    """The profile with another engine's part."""
    part = {name: getattr(settings, name) for name in ENGINE_FIELDS}
    return ServeProfile.model_validate({**profile.model_dump(), **part})


def profile_in_force(profile: ServeProfile, registry: Registry) -> ServeProfile:
    """The profile as it is to be served: with the engine that took the place of its own, if one did.

    Raises:
        InvalidEvidence: what took its place cannot be read.
    """
    given = settings_of(profile)
    found = settings_in_force(registry, given)
    if found == given:
        return profile
    log.warning(
        "the engine of this profile (%s) was replaced by `llmops engine switch`; serving %s %s on %s (%s) instead",
        short(given.digest()), found.engine["kind"], found.engine.get("dtype", ""), found.base_model,
        short(found.digest()),
    )  # fmt: skip
    return with_settings(profile, found)
