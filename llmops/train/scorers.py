"""What rewards sampled answers: users' Python functions and reward models, both called alike.

Runs users' code; loads the weights of reward models when they are first asked.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llmops.data.builder import load_function
from llmops.errors import ConfigError, DataError
from llmops.manifest import sha256_file
from llmops.registry.bases import Base
from llmops.train.prompts import Asked
from llmops.train.recipe import PythonReward
from llmops.train.rewards import RewardModel

SIGNATURE = "(prompt, completion, reference)"


@dataclass(frozen=True)
class Answer:
    """One sampled answer: what was asked, its text, and its token ids with the end token, if it came to one."""

    asked: Asked
    text: str
    token_ids: tuple[int, ...]


class Scorer(Protocol):
    """Something that rewards answers."""

    @property
    def name(self) -> str:
        """What figures and messages call it."""

    @property
    def weight(self) -> float:
        """What its rewards are multiplied by."""

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """A finite number for each answer."""


@dataclass(frozen=True)
class FunctionScorer:
    """A user's function."""

    name: str
    weight: float
    function: Callable[..., Any]
    source: bytes = b""  # of its file

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """What the function says of each answer.

        Raises:
            DataError: it failed, in its own words, or gave no finite number; names the row.
        """
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> float:
        where = f"{self.name}: {answer.asked.source}"
        turns = [message.to_turn() for message in answer.asked.messages]
        try:
            value = self.function(turns, answer.text, answer.asked.reference)
        except Exception as error:  # a user's code may raise anything; its own words are the message
            raise DataError(
                f"{where}: failed ({type(error).__name__}: {error}) on the answer {answer.text[:80]!r}; "
                "mend the function"
            ) from error
        number = value if isinstance(value, int | float) else math.nan
        if not math.isfinite(number):
            raise DataError(
                f"{where}: gave {value!r} for the answer {answer.text[:80]!r}; return a finite number"
            )
        return float(number)


@dataclass(frozen=True)
class ModelScorer:
    """A reward model, loaded when it is first asked."""

    name: str
    weight: float
    base: Base
    folder: Path
    device: str
    _loaded: list[RewardModel] = field(default_factory=list)

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """Its reward of each prompt with its answer, read at the answer's last token.

        Raises:
            DataError: one is not finite; names the row.
        """
        if not self._loaded:
            self._loaded.append(RewardModel(self.base.path, self.folder, self.device))
        found = self._loaded[0].rewards([a.asked.prompt_ids + a.token_ids for a in answers])
        for reward, answer in zip(found, answers, strict=True):
            if not math.isfinite(reward):
                raise DataError(
                    f"{self.name}: {answer.asked.source}: gave {reward}; train the reward model again"
                )
        return list(found)


def load_scorer(named: PythonReward, folder: Path, place: str) -> tuple[PythonReward, FunctionScorer]:
    """A user's reward function, and its setting with the digest of the file that was read.

    Args:
        named: the setting.
        folder: what its path is relative to; the file may also lie in it as it is kept beside a lineage.
        place: the recipe's file and the setting, for messages.

    Raises:
        ConfigError: the file is not there, does not load, is not the one whose digest is given, or the function cannot
            be called with three arguments.
    """
    file, _, name = named.function.rpartition("::")
    path = folder / (kept_name(named.sha256) if named.sha256 else file)
    path = path if path.is_file() else folder / file
    if not path.is_file():
        raise ConfigError(f"{place}: {path}: no such file; correct function")
    digest = sha256_file(path)
    if named.sha256 not in (None, digest):
        raise ConfigError(
            f"{place}: {path} has sha256 {digest}, the recipe asks for {named.sha256}; restore the file, or leave "
            "sha256 out"
        )
    function = load_function(path, name, "function")
    try:
        inspect.signature(function).bind([], "", None)
    except TypeError as error:
        raise ConfigError(
            f"{place}: {named.function}: is called as {name}{SIGNATURE} ({error}); mend it"
        ) from None
    scorer = FunctionScorer(named.function, named.weight, function, path.read_bytes())
    return named.model_copy(update={"sha256": digest}), scorer


def kept_name(sha256: str) -> str:
    """What the file of a reward function is called beside a lineage."""
    return f"reward-{sha256}.py"


def reward_files(scorers: Sequence[Scorer]) -> dict[str, bytes]:
    """The files of the reward functions among these, as they are kept beside a lineage."""
    sources = [scorer.source for scorer in scorers if isinstance(scorer, FunctionScorer)]
    return {kept_name(hashlib.sha256(source).hexdigest()): source for source in sources}
