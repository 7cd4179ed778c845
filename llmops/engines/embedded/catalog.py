"""The names this engine answers to: the base model and the adapters loaded at run time.

Lives on the event loop. A name is bound to a bank entry when it is loaded and never changes what it means;
unloading forgets the name at once, while rows that run with it finish and only then leave the slot free.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmops.engines.embedded.adapters import BASE, AdapterMissing, AdapterRefused, read_adapter
from llmops.engines.embedded.batcher import Batcher
from llmops.engines.embedded.messages import RequestRefused
from llmops.engines.embedded.model import LanguageModel
from llmops.engines.embedded.protocol import LoadAdapterRequest


@dataclass(frozen=True)
class _Loaded:
    entry: str
    path: str
    created_s: int


class Catalog:
    """Names to bank entries."""

    def __init__(self, model: LanguageModel, batcher: Batcher) -> None:
        """Start with the base name alone."""
        self._model = model
        self._batcher = batcher
        self._base = model.spec.served_name
        self._created_s = int(time.time())
        self._adapters: dict[str, _Loaded] = {}
        self._loading = asyncio.Lock()

    def resolve(self, name: str | None) -> tuple[str, str]:
        """Return the name that answers and its bank entry; no name: the base. Raises RequestRefused (404)."""
        if not name or name == self._base:
            return self._base, BASE
        if name not in self._adapters:
            raise RequestRefused(f"The model `{name}` does not exist.", "model", 404)
        return name, self._adapters[name].entry

    async def load(self, wanted: LoadAdapterRequest) -> None:
        """Bind `lora_name` to the adapter at `lora_path`.

        Raises RequestRefused with vLLM's texts and status codes: 400 for a name in use or an adapter that
        cannot be served, 404 where there is none at the path.
        """
        async with self._loading:
            self._check_name(wanted)
            try:
                files = await asyncio.to_thread(read_adapter, Path(wanted.lora_path))
                attached = self._batcher.call(lambda: self._model.adapters.attach(files))
                entry: str = await asyncio.wrap_future(attached)
            except AdapterMissing as error:
                what = f"No adapter found for {wanted.lora_path} ({error})"
                raise RequestRefused(f"Loading lora {wanted.lora_name} failed: {what}", status=404) from error
            except AdapterRefused as error:
                raise RequestRefused(
                    f"Loading lora {wanted.lora_name} failed: {error}", "lora_path"
                ) from error
            self._adapters[wanted.lora_name] = _Loaded(entry, wanted.lora_path, int(time.time()))

    def unload(self, name: str) -> None:
        """Forget a name; raises RequestRefused (400 without a name, 404 for one that is not loaded)."""
        if not name:
            raise RequestRefused(
                "'lora_name' needs to be provided to unload a LoRA adapter.", kind="InvalidUserInput"
            )
        if name not in self._adapters:
            raise RequestRefused(f"The lora adapter '{name}' cannot be found.", status=404)
        self._batcher.retire(self._adapters.pop(name).entry)

    def cards(self) -> list[dict[str, Any]]:
        """Return OpenAI model cards with vLLM's `root`, `parent` and `max_model_len`."""
        base = _card(self._base, self._created_s, str(self._model.spec.path), None)
        base["max_model_len"] = self._model.max_model_len
        adapters = [
            _card(name, loaded.created_s, loaded.path, self._base) for name, loaded in self._adapters.items()
        ]
        return [base, *adapters]

    def _check_name(self, wanted: LoadAdapterRequest) -> None:
        name = wanted.lora_name
        problem = None
        if not name or not wanted.lora_path:
            problem = "Both 'lora_name' and 'lora_path' must be provided."
        elif name == self._base:
            problem = f"The lora adapter '{name}' conflicts with a served base model."
        elif wanted.load_inplace:
            problem = (
                "load_inplace: a name never changes what it means here; load the adapter under a new name."
            )
        elif name in self._adapters:
            problem = f"The lora adapter '{name}' has already been loaded."
        if problem:
            raise RequestRefused(problem, kind="InvalidUserInput")


def _card(name: str, created_s: int, root: str, parent: str | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created_s,
        "owned_by": "llmops",
        "root": root,
        "parent": parent,
        "max_model_len": None,
        "permission": [],
    }
