"""References as tokens: what a system's log-probability is asked of.

The conversation up to the reference is rendered by the system's own prompt contract with the base's tokenizer, as in
training and serving. Needs the base model's files on this machine, and transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmops.chat import Encoder
from llmops.engines.endpoint import System
from llmops.errors import DataError, RowRefused
from llmops.records import Case, Message, PromptContract


@dataclass(frozen=True)
class Tokens:
    """A prompt with its reference and the end token after it; the last `n_reference` of the ids are these."""

    ids: tuple[int, ...]
    n_reference: int


class ReferenceTokens:
    """Encodes references for systems of one base."""

    def __init__(self, base: Path, contracts: Mapping[str, PromptContract]) -> None:
        """Load the tokenizer in a base's folder; `contracts` holds each system's, by model name."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base)
        self._encoders = {model: Encoder(tokenizer, contract) for model, contract in contracts.items()}

    def of(self, system: System, case: Case, earlier: tuple[str, ...]) -> Tokens:
        """A case's first reference where the last answer would stand; `earlier` are the system's answers before it.

        Raises:
            DataError: the chat template cannot carry the conversation.
        """
        turns = list(case.messages)
        for said, follow_up in zip(earlier, case.follow_ups, strict=True):
            turns += [Message("assistant", said), Message("user", follow_up)]
        try:
            found = self._encoders[system.model].encode_answer(
                (*turns, Message("assistant", case.references[0])), case.tools
            )
        except RowRefused as error:
            raise DataError(f"case {case.source}: its reference has no log-probability: {error}") from error
        end = len(found.loss_mask) - found.loss_mask[::-1].index(1)
        return Tokens(found.input_ids[:end], sum(found.loss_mask))
