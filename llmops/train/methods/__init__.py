"""The training methods, one module each; every one of them turns examples into a saved adapter and its figures.

Nothing here loads torch: a method's module is imported when a run of it starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # loads torch
    from llmops.train.loop import OnStep
    from llmops.train.recipe import Recipe
    from llmops.train.session import Session

Figures = dict[str, float]


def _sft(recipe: Recipe, session: Session[Any], on_step: OnStep) -> Figures:
    from llmops.train.methods import sft

    return sft.train_adapter(recipe, session, on_step)


def _dpo(recipe: Recipe, session: Session[Any], on_step: OnStep) -> Figures:
    from llmops.train.methods import dpo

    return dpo.train_adapter(recipe, session, on_step)


def _kto(recipe: Recipe, session: Session[Any], on_step: OnStep) -> Figures:
    from llmops.train.methods import kto

    return kto.train_adapter(recipe, session, on_step)


def _orpo(recipe: Recipe, session: Session[Any], on_step: OnStep) -> Figures:
    from llmops.train.methods import orpo

    return orpo.train_adapter(recipe, session, on_step)


def _reward(recipe: Recipe, session: Session[Any], on_step: OnStep) -> Figures:
    from llmops.train.methods import reward

    return reward.train_adapter(recipe, session, on_step)


def _distill(recipe: Recipe, session: Session[Any], on_step: OnStep) -> Figures:
    from llmops.train.methods import distill

    return distill.train_adapter(recipe, session, on_step)


def _grpo(recipe: Recipe, session: Session[Any], on_step: OnStep) -> Figures:
    from llmops.train.methods import grpo

    return grpo.train_adapter(recipe, session, on_step)


TRAIN: dict[str, Callable[[Recipe, Session[Any], OnStep], Figures]] = {
    "sft": _sft,
    "dpo": _dpo,
    "kto": _kto,
    "orpo": _orpo,
    "reward": _reward,
    "distill": _distill,
    "grpo": _grpo,
}
"""By the recipe's `method.kind`: trains, writes the PEFT folder `session.adapter`, returns the run's figures."""
