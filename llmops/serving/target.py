"""What can answer: a model under its immutable name in one engine session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llmops.records import PromptContract
from llmops.serving.http import Header


@dataclass(frozen=True)
class Target:
    """Something loaded in the engine that can answer.

    `engine_name` is its immutable name there (`name@digest12`), `digest` the full digest of the adapter or
    base, `contract` the prompt contract its answers are made under and `engine` the digest of the engine's
    signature.
    """

    engine_name: str
    digest: str
    contract: PromptContract
    engine: str

    @cached_property
    def headers(self) -> tuple[Header, ...]:
        """The response headers that say who answered."""
        return (
            (b"x-llmops-model", self.digest.encode()),
            (b"x-llmops-prompt-contract", self.contract.digest().encode()),
            (b"x-llmops-engine", self.engine.encode()),
        )
