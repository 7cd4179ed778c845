"""Embedding similarity: the cosine between an answer and its best reference, by a local encoder.

The text's vector is the mean over its tokens' last hidden states, which is how sentence-transformers' all-MiniLM and
all-mpnet read theirs. Loads the model when it first scores; nothing is fetched but a `pypi:` reference, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from llmops.evals.metrics.metric import (
    Answers,
    Measured,
    Metric,
    mean_of_samples,
    n_references,
    references_of,
    texts_of,
)
from llmops.evals.metrics.spelling import MetricSettings
from llmops.registry.bases import folder_digest
from llmops.registry.encoders import resolve_encoder
from llmops.schema import short
from llmops.stats import FloatArray

COSINE = "cosine"
_BATCH = 64


class Embedding(MetricSettings):
    """Cosine of the answer's vector and that of its nearest reference, from -1 to 1."""

    kind: Literal["embedding"]
    model: str
    """A folder relative to the suite's file, or `pypi:NAME==VERSION/FOLDER`."""
    max_tokens: int = Field(default=256, ge=2, le=8192)
    """Longer texts are cut; all-MiniLM-L6-v2 was trained on up to 256."""

    def metric(self, folder: Path) -> Metric:
        """The metric; the model's files are hashed, and loaded when it first scores.

        Raises:
            BadRequest: there is no such folder or package path.
            CouldNotRun: the package index did not deliver it.
        """
        path = resolve_encoder(self.model, folder)
        digest = folder_digest(path)
        return Metric(
            self.label,
            "mean",
            partial(_measure, path, digest, self.max_tokens),
            lambda answers: (
                f"embedding|nrefs:{n_references(answers) or 'var'}|best:ref|pooling:mean|max_tokens:{self.max_tokens}"
                f"|model:{short(digest)}|transformers:{metadata.version('transformers')}"
                f"|torch:{metadata.version('torch')}"
            ),
            unit=COSINE,
            digest=digest,
        )


def _measure(path: Path, digest: str, max_tokens: int, answers: Answers) -> Measured:
    texts, references = texts_of(answers), references_of(answers)
    distinct = sorted({*texts, *(reference for each in references for reference in each)}, key=len)
    vectors = _embed(*_loaded(path, digest), distinct, max_tokens)
    place = {text: i for i, text in enumerate(distinct)}
    best = [
        max(float(vectors[place[text]] @ vectors[place[reference]]) for reference in each)
        for text, each in zip(texts, references, strict=True)
    ]
    return mean_of_samples(answers, np.clip(best, -1.0, 1.0))


def _embed(tokenizer: Any, model: Any, texts: Sequence[str], max_tokens: int) -> FloatArray:
    """Vectors [N, D] of length 1; the nearer in length neighbours are, the less padding there is."""
    import torch

    found = []
    with torch.inference_mode():
        for first in range(0, len(texts), _BATCH):
            batch = tokenizer(
                list(texts[first : first + _BATCH]),
                padding=True, truncation=True, max_length=max_tokens, return_tensors="pt",
            )  # fmt: skip
            mask = batch["attention_mask"][:, :, None].float()
            hidden = model(**batch).last_hidden_state.float() * mask
            mean = hidden.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            found.append(torch.nn.functional.normalize(mean, dim=1).double().numpy())
    return np.concatenate(found)


@cache
def _loaded(path: Path, digest: str) -> tuple[Any, Any]:
    """Tokenizer and model of a folder whose files have that digest."""
    del digest  # other files are another model
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # of weights: it would cut through the command's own
    model = AutoModel.from_pretrained(str(path), local_files_only=True)
    return AutoTokenizer.from_pretrained(str(path), local_files_only=True), model.eval()
