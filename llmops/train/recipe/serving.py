"""The engine an adapter is meant for, so that one it would refuse is not trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmops.train.recipe.settings import Settings


class Serve(Settings):
    """The engine that shall serve the adapter."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """vllm, or the embedded one."""
    version: str = Field("0.32.0", pattern=r"^\d+(\.\d+)+\S*$")
    """vLLM's version there."""
    max_lora_rank: int | None = Field(None, ge=1)
    """The largest rank that engine is started with; unset: vLLM's own default, 16."""
