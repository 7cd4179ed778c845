"""How a recipe trains: one class a method, told apart by `kind`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmops.train.recipe.settings import Settings


class Sft(Settings):
    """Supervised fine-tuning: the loss of the assistant's tokens."""

    kind: Literal["sft"]
    """The training method."""


class Dpo(Settings):
    """Direct preference optimization (Rafailov 2023, arXiv:2305.18290): chosen answers gain on rejected ones.

    The model is held near the one that training starts from, its reference: the adapter named by `continue_from`, the
    base without one. A pair's margin is log p(chosen) - log p(rejected), less the same under the reference.
    """

    kind: Literal["dpo"]
    """The training method."""
    beta: float = Field(0.1, gt=0)
    """How dear it is to leave the reference; larger stays nearer to it. For ipo this is its tau."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: -log sigmoid(beta * margin). ipo: squared distance of the margin a token from 1 / (2 * beta), which does
    not push pairs that are settled already (Azar 2023, arXiv:2310.12036)."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen answers' own loss (nats a label), added so that they do not grow unlikely together with the
    rejected ones (RPO; Pang 2024, arXiv:2404.19733)."""
