"""Base models on a model hub: fetched whole, or all but the weights, whose sizes and digests the hub itself tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops.errors import BadRequest, CouldNotRun
from llmops.schema import JsonDict

WEIGHTS = "*.safetensors"
PATTERNS = ["*.json", "*.jinja", "tokenizer*", "*.model"]


@dataclass(frozen=True)
class Glimpse:
    """A folder with a model's files, and of weights that may not be in it: path, size and sha256."""

    path: Path
    weights: tuple[JsonDict, ...]


def fetch(ref: str) -> Path:
    """The folder of a hub's model, `owner/name` or `owner/name@commit`; what is there already is not fetched again.

    Raises:
        BadRequest: it is no hub id, or has no weights as safetensors.
        CouldNotRun: the hub did not deliver it.
    """
    path = _snapshot(ref, [*PATTERNS, WEIGHTS])
    if not any(path.glob(f"**/{WEIGHTS}")):
        raise BadRequest(f"base model {ref}: has no {WEIGHTS}; name a model that is saved as safetensors")
    return path


def glimpse(ref: str) -> Glimpse:
    """A hub's model without its weights.

    Raises:
        BadRequest: it is no hub id, or has no weights whose sha256 the hub tells.
        CouldNotRun: the hub did not answer.
    """
    from huggingface_hub import HfApi

    name, _, commit = ref.partition("@")
    with _told(ref):
        info = HfApi().model_info(name, revision=commit or None, files_metadata=True)
    weights = tuple(_entry(file) for file in info.siblings or () if Path(file.rfilename).match(WEIGHTS))
    if not weights or not all(entry["sha256"] for entry in weights):
        raise BadRequest(f"base model {ref}: the hub tells no sha256 of its {WEIGHTS}; fetch it whole")
    return Glimpse(_snapshot(f"{name}@{info.sha}", PATTERNS), weights)


def _entry(file: Any) -> JsonDict:
    return {"path": file.rfilename, "size": file.size, "sha256": file.lfs.sha256 if file.lfs else None}


def _snapshot(ref: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    name, _, commit = ref.partition("@")
    with _told(ref):
        return Path(snapshot_download(name, revision=commit or None, allow_patterns=patterns))


@contextmanager
def _told(ref: str) -> Iterator[None]:
    """The hub's refusals in our words."""
    from httpx2 import TransportError  # what huggingface_hub's own client raises without a network
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError:
        raise BadRequest(
            f"base model {ref}: neither a folder nor a hub id (owner/name); correct it"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, TransportError, OSError) as error:
        raise CouldNotRun(
            f"base model {ref}: the model hub did not deliver it ({type(error).__name__}); "
            "check the network, or name a folder"
        ) from error
