"""LoRA adapters on the base model: reading and refusing, attaching, routing rows to them, detaching.

PEFT's layers do the work. A mixed batch is routed by one forward hook per LoRA layer that is registered when
an adapter is attached (PEFT's own `adapter_names=` registers and removes a hook on every layer in every
call). On a 16-bit base adapter weights stay fp32, PEFT's default and what the trainer scores with; vLLM rounds
them. On a CPU that costs nothing at decode and a tenth at prefill. Files are read on the HTTP side; everything
that touches the model runs on the worker thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from llmops.errors import BadRequest

BASE = "__base__"
"""PEFT's name for rows without an adapter."""

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PLAIN_INITS: tuple[object, ...] = (True, False, "gaussian", "orthogonal", "eva")
MAX_KEYS_NAMED = 3


class AdapterRefused(BadRequest):
    """This adapter cannot be served by this engine; the message says which part of it and why."""


class AdapterMissing(BadRequest):
    """There is no adapter at the path."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as read from disk, not yet on the model."""

    path: Path
    config: LoraConfig
    tensors: dict[str, torch.Tensor]


def read_adapter(path: Path) -> AdapterFiles:
    """Read a PEFT folder.

    Raises AdapterMissing without its two files, AdapterRefused for what cannot share a batch with other rows.
    """
    if not (path / CONFIG_FILE).is_file() or not (path / WEIGHTS_FILE).is_file():
        raise AdapterMissing(f"{path} lacks {CONFIG_FILE} or {WEIGHTS_FILE}")
    try:
        raw = json.loads((path / CONFIG_FILE).read_bytes())
        config = PeftConfig.from_pretrained(str(path))
        tensors = load_file(path / WEIGHTS_FILE)
    except Exception as error:
        raise AdapterRefused(f"the files cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(config, LoraConfig):
        raise AdapterRefused(f"peft_type is {raw.get('peft_type')!r}; only LORA can be served")
    for problem in _unservable(config):
        raise AdapterRefused(problem)
    config.inference_mode = True
    config.init_lora_weights = False
    return AdapterFiles(path, config, tensors)


def _unservable(config: LoraConfig) -> Iterator[str]:
    """Yield every reason why this adapter cannot share a batch with others (PEFT's limits and vLLM's)."""
    if config.use_dora:
        yield "use_dora is set; DoRA cannot be mixed in a batch"
    if config.bias != "none" or config.lora_bias:
        yield f"bias is {config.bias!r}, lora_bias is {config.lora_bias}; a bias changes every row"
    if config.modules_to_save:
        yield f"modules_to_save is {sorted(config.modules_to_save)}; it replaces modules of the base"
    if config.init_lora_weights not in PLAIN_INITS:
        yield f"init_lora_weights is {config.init_lora_weights!r}; it needs a changed base model"
    for name in (
        "layer_replication",
        "trainable_token_indices",
        "alora_invocation_tokens",
        "target_parameters",
    ):
        if getattr(config, name, None):
            yield f"{name} is set; this engine serves plain LoRA on linear layers"
    for name in (
        "use_qalora",
        "use_bdlora",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "velora_config",
    ):
        if getattr(config, name, None):
            yield f"{name} is set; this engine serves plain LoRA on linear layers"


class AdapterBank:
    """The adapters attached to one base model, under internal names that PyTorch accepts as module names."""

    def __init__(self, net: torch.nn.Module, max_loras: int) -> None:
        """Start with the plain model and room for `max_loras` adapters."""
        self._net = net
        self._max_loras = max_loras
        self._peft: PeftModel | None = None
        self._hooks: list[Any] = []
        self._rows: list[str] = []
        self._n_ever = 0

    def __len__(self) -> int:
        """Adapters attached, those on their way out included."""
        return len(self._peft.peft_config) if self._peft else 0

    def attach(self, files: AdapterFiles) -> str:
        """Put an adapter on the model and return its internal name.

        Raises AdapterRefused, leaving the model as it was, when all slots are taken or the weights do not
        match the modules: a key too many or too few, or a shape of another model.
        """
        if len(self) >= self._max_loras:
            raise AdapterRefused(
                f"all {self._max_loras} adapter slots (--max-loras) are taken; unload one first"
            )
        self._n_ever += 1
        name = f"adapter{self._n_ever}"
        try:
            self._inject(name, files)
            _check_keys(self._peft, name, files)
            set_peft_model_state_dict(self._peft, files.tensors, adapter_name=name)
        except Exception as error:
            self.detach(name)
            if isinstance(error, AdapterRefused):
                raise
            reason = " ".join(str(error).split())[:400]
            raise AdapterRefused(
                f"it does not fit this base model ({type(error).__name__}: {reason})"
            ) from error
        self._hook_layers()
        return name

    def detach(self, name: str) -> None:
        """Take an adapter off the model; after the last one the plain model runs again."""
        if self._peft is not None and set(self._peft.peft_config) - {name}:
            if name in self._peft.peft_config:
                self._peft.delete_adapter(name)
        else:
            _strip_lora(self._net)
            self._peft = None
        self._hook_layers()

    @contextmanager
    def routed(self, rows: list[str]) -> Iterator[None]:
        """Within, row b of every forward goes through bank entry `rows[b]` (BASE for none)."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = []

    def _inject(self, name: str, files: AdapterFiles) -> None:
        if self._peft is None:
            self._peft = PeftModel(self._net, files.config, adapter_name=name)
        else:
            self._peft.add_adapter(name, files.config)
        self._peft.eval().requires_grad_(False)

    def _hook_layers(self) -> None:
        for hook in self._hooks:
            hook.remove()
        layers = [m for m in self._net.modules() if isinstance(m, LoraLayer)] if self._peft else []
        self._hooks = [layer.register_forward_pre_hook(self._route, with_kwargs=True) for layer in layers]

    def _route(
        self, _layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "adapter_names": self._rows}


def _check_keys(peft: PeftModel | None, name: str, files: AdapterFiles) -> None:
    """Raise AdapterRefused unless the file's keys are exactly those its config makes on this base model."""
    wanted = set(get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False))
    found = set(files.tensors)
    complaints = []
    if found - wanted:
        complaints.append(f"{len(found - wanted)} unexpected keys ({_some(found - wanted)})")
    if wanted - found:
        complaints.append(f"{len(wanted - found)} missing keys ({_some(wanted - found)})")
    if complaints:
        raise AdapterRefused(
            f"its weights do not match its config on this base model: {'; '.join(complaints)}"
        )


def _some(keys: set[str]) -> str:
    shown = sorted(keys)[:MAX_KEYS_NAMED]
    return ", ".join(shown) + (", ..." if len(keys) > len(shown) else "")


def _strip_lora(net: torch.nn.Module) -> None:
    """Put the base layers back where LoRA layers stand, also after an injection that failed half-way."""
    for parent in list(net.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                setattr(parent, child_name, child.get_base_layer())
    if hasattr(net, "peft_config"):
        del net.peft_config
