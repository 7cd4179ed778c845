"""What a pass holds at most: the base's own code runs on tensors without contents.

The model is built from its configuration with a few of its layers, gets the recipe's adapter, and takes passes of the
recipe's shapes forward and backward, exactly as in training. No weight is read and no number is computed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from llmops.train.cross_entropy import chunked_nll, labels_at_once
from llmops.train.loop import Question, scoring_only, token_nll
from llmops.train.memory.passes import Pass


@dataclass(frozen=True)
class Subject:
    """What is traced: a model's configuration and how it is trained on `device`."""

    config: Any  # transformers' configuration
    lora: LoraConfig
    dtype: torch.dtype
    attention: str
    checkpointing: bool
    quantized: (
        bool  # layers inside the blocks are held in few bits and unpacked to `dtype` where they are used
    )
    mask: Literal["none", "padding", "each pair"]  # what passes carry: [B, T], or [B, 1, T, T] and positions
    scored: bool  # tokens are scored by the output layer; else sequences by a head of one number
    device: str

    @property
    def mixed(self) -> bool:
        """Whether arithmetic is of fewer bits than the adapter's weights."""
        return bool(self.dtype != torch.float32)


@dataclass
class Trace:
    """Bytes that are alive now, and that were alive at most."""

    live: int = 0
    peak: int = 0

    def add(self, n_bytes: int) -> None:
        """Note an allocation, or with a negative number a release."""
        self.live += n_bytes
        self.peak = max(self.peak, self.live)


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Counts every storage that an operation makes in `trace` until it goes."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        """Leave out `known`, which is there before."""
        super().__init__()
        self.trace = Trace()
        self._known: dict[int, Any] = {t.untyped_storage()._cdata: t for t in known}

    def __torch_dispatch__(
        self, function: Any, _types: Any, arguments: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and look at what it gives."""
        found = function(*arguments, **(named or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.note(leaf)
        return found

    def note(self, tensor: torch.Tensor) -> None:
        """Note a tensor's storage unless it is known."""
        storage = tensor.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self._known or n_bytes == 0:
            return
        self.trace.add(n_bytes)

        def gone(_: Any) -> None:
            del self._known[key]
            self.trace.add(-n_bytes)

        self._known[key] = weakref.ref(storage, gone)


def trace_passes(subject: Subject, n_layers: int, passes: Sequence[Pass]) -> Trace:
    """The trace of steps behind the first, one for each of `passes` that differs, with so many of the model's layers.

    Gradients and AdamW's two states a trainable parameter are in it; weights and the adapter itself are not.
    """
    model = _on_meta(subject, n_layers)
    with FakeTensorMode(allow_non_fake_inputs=True):
        held = _give_contents(model, subject)
        trained = [p for p in model.parameters() if p.requires_grad]
        recorder = Recorder(held)
        with recorder:
            states = [torch.empty_like(p, requires_grad=False) for p in trained for _ in range(2)]
        for one in dict.fromkeys(passes):
            _take(model, subject, one, recorder)
            for parameter in trained:
                parameter.grad = None
        del states
    return recorder.trace


def _on_meta(subject: Subject, n_layers: int) -> Any:
    config = shortened(subject.config, n_layers)
    kind = AutoModelForCausalLM
    if not subject.scored:
        kind, config.num_labels = AutoModelForSequenceClassification, 1
        config.pad_token_id = config.pad_token_id or 0
    with torch.device("meta"):
        model = kind.from_config(config, dtype=subject.dtype, attn_implementation=subject.attention)
        model.config.use_cache = False
        adapted = get_peft_model(model, subject.lora)
    if subject.checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    return adapted.train()


def shortened(config: Any, n_layers: int) -> Any:
    """A copy of a model's configuration with its first `n_layers` layers alone."""
    copy = type(config).from_dict(config.to_dict())
    text = copy.get_text_config()
    text.num_hidden_layers = n_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:n_layers]
    return copy


def _give_contents(model: Any, subject: Subject) -> list[torch.Tensor]:
    """Put tensors of the device, without contents, in place of those of `meta`; returns them."""
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            dtype = torch.float32 if tensor.requires_grad else tensor.dtype
            made[id(tensor)] = torch.empty(tensor.shape, dtype=dtype, device=subject.device)
        return made[id(tensor)]

    kept = []  # an id is one tensor's only while it lives
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                kept.append(parameter)
                module._parameters[name] = torch.nn.Parameter(fake(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                kept.append(buffer)
                module._buffers[name] = fake(buffer)
    if subject.quantized:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "lora_" not in name and "lm_head" not in name:
                module.forward = _unpacking(module)
    return list(made.values())


def _unpacking(layer: torch.nn.Linear) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Unpacked.apply(x, layer.weight)
        return found if layer.bias is None else found + layer.bias

    return forward


class _Unpacked(torch.autograd.Function):  # type: ignore[misc]
    """A linear layer whose packed weight is unpacked anew for each product, as bitsandbytes and torchao do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`x` [..., in] times the unpacked weight [out, in]."""
        ctx.save_for_backward(weight)
        return torch.nn.functional.linear(x.to(weight.dtype), torch.empty_like(weight))

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient of `x` alone: the weight is frozen."""
        (weight,) = ctx.saved_tensors
        return slope @ torch.empty_like(weight).to(slope.dtype), None


@contextmanager
def _arithmetic(model: Any, subject: Subject) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(disable_input_dtype_casting(model, active=subject.mixed))
        if subject.mixed:
            stack.enter_context(torch.autocast(subject.device, dtype=subject.dtype))
        yield


def _take(model: Any, subject: Subject, one: Pass, recorder: Recorder) -> None:
    """One pass forward and backward."""
    with recorder:
        ids = torch.zeros(one.n_sequences, one.n_tokens, dtype=torch.long, device=subject.device)
        inputs = {"input_ids": ids} | _masks(subject, ids)
        places = torch.zeros(one.n_labels, dtype=torch.long, device=subject.device)
        with _arithmetic(model, subject):
            if subject.scored:
                asked = Question(inputs, places, places, places)
                loss = _nll(model, model.get_output_embeddings(), asked).sum()
            else:
                loss = model(**inputs, use_cache=False).logits.float().sum()
        loss.backward()


def _masks(subject: Subject, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    if subject.mask == "none":
        return {}
    if subject.mask == "padding":
        return {"attention_mask": torch.ones_like(ids)}
    n_rows, n_tokens = ids.shape
    dtype = subject.dtype if subject.attention == "eager" else torch.bool
    seen = torch.ones(n_rows, 1, n_tokens, n_tokens, dtype=dtype, device=subject.device)
    return {"attention_mask": seen, "position_ids": torch.zeros_like(ids)}


def _nll(model: Any, layer: torch.nn.Module, asked: Question) -> torch.Tensor:
    """As `token_nll`, less its proof that the model does nothing to its logits, which needs numbers."""
    n_at_once = labels_at_once(layer)
    if asked.targets.numel() <= n_at_once:
        return token_nll(model, layer, asked)
    with scoring_only(layer, asked, n_let_in=1) as seen:
        model(**asked.inputs, use_cache=False)
    if seen.hidden is None:
        raise RuntimeError(f"{type(model).__name__}: its output layer was not run; it cannot be trained here")
    with seen.arithmetic:
        return chunked_nll(seen.hidden, layer, asked.targets, n_at_once)
