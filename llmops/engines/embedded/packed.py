"""Linear layers whose weights lie as the CPU's kernels read them: what a batch of few tokens costs most.

torch's own `linear` lays a weight out anew in every call. For a step of 2 to 16 rows that takes as long as the
multiplication, so on x86 with fp32 weights it is done once, by oneDNN, when the model is loaded: the linear layers of
a step of SmolLM2-135M take 52 ms in place of 90 with 2 rows, 76 for 97 with 8, 105 for 122 with 16, and 51 for 48
with one (AVX2, one thread).
"""

from __future__ import annotations

import platform

import torch

ROWS = 16
"""Rows the layout is chosen for. Measured with 1 to 128: all layouts for 4 rows and more are the same here."""


class PackedLinear(torch.nn.Linear):  # type: ignore[misc]
    """A linear layer of an inference model; its weight is opaque, so it can be neither read nor changed."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        """Take over the layer's weight and bias."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), ROWS)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.bias = plain.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [..., in_features] to [..., out_features]."""
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.weight, self.bias, "none", [], ""
        )
        return found


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing makes a model of this kind faster here."""
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return on_x86 and device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()


def pack_linears(net: torch.nn.Module) -> None:
    """Replace every plain linear layer; a weight that an embedding shares is there twice then."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, PackedLinear(child))
