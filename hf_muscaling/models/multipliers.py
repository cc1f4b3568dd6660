"""The layers that carry a multiplier, as a Python float on the module.

A float survives deepcopy, FSDP's parameter swap, `torch.compile` and `from_pretrained`, and `print(model)` shows it.
"""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

# Set on modules by transformers and by `MuModelMixin.initialize_weights`: a swapped layer must not be initialised anew.
_FLAGS = ("_is_hf_initialized", "_mu_initialized")


class MuReadout(nn.Linear):
    """Map an infinite dimension to a finite one: y = W·(m·x) + bias, with m = τ / r.

    τ is the output multiplier at base width and r the fan-in's ratio to base width (nanoLM Table 2, "multiplier,
    output").

    >>> MuReadout(8, 3, bias=False, multiplier=0.25)
    MuReadout(in_features=8, out_features=3, bias=False, multiplier=0.25)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, multiplier: float = 1.0, **kwargs):
        super().__init__(in_features, out_features, bias=bias, **kwargs)
        self.multiplier = float(multiplier)

    @classmethod
    def from_linear(cls, linear: nn.Linear, multiplier: float) -> "MuReadout":
        """Return a readout that holds the very parameters of `linear`, so that a tie to the embedding stays."""
        readout = cls(linear.in_features, linear.out_features, linear.bias is not None, multiplier, device="meta")
        return _take_over(linear, readout)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the logits; training and evaluation multiply alike."""
        return super().forward(input if self.multiplier == 1.0 else input * self.multiplier)

    def extra_repr(self) -> str:
        """Show the multiplier in `print(model)`."""
        return f"{super().extra_repr()}, multiplier={self.multiplier:g}"


class MuBranch(nn.Linear):
    """The last projection of a residual branch: y = m·(W·x + bias), with m = base depth / depth (CompleteP).

    >>> MuBranch.from_linear(nn.Linear(4, 4, bias=False), 0.5)
    MuBranch(in_features=4, out_features=4, bias=False, multiplier=0.5)
    """

    multiplier: float

    @classmethod
    def from_linear(cls, linear: nn.Linear, multiplier: float) -> "MuBranch":
        """Return a layer that holds the very parameters of `linear`."""
        branch = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        branch.multiplier = float(multiplier)
        return _take_over(linear, branch)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the branch's contribution to the residual stream."""
        return super().forward(input) * self.multiplier

    def extra_repr(self) -> str:
        """Show the multiplier in `print(model)`."""
        return f"{super().extra_repr()}, multiplier={self.multiplier:g}"


class MuBranchConv1D(Conv1D):
    """`MuBranch` for GPT-2's Conv1D, which stores (in, out)."""

    multiplier: float

    @classmethod
    def from_conv1d(cls, conv: Conv1D, multiplier: float) -> "MuBranchConv1D":
        """Return a layer that holds the very parameters of `conv`."""
        with torch.device("meta"):
            branch = cls(conv.nf, conv.nx)
        branch.multiplier = float(multiplier)
        return _take_over(conv, branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the branch's contribution to the residual stream."""
        return super().forward(x) * self.multiplier

    def __repr__(self) -> str:
        """Show the multiplier in `print(model)`."""
        return f"MuBranchConv1D(nf={self.nf}, nx={self.nx}, multiplier={self.multiplier:g})"


def branch_layer(layer: nn.Module, multiplier: float) -> nn.Module:
    """Return the branch's last projection with its multiplier. Raises TypeError for another kind of layer."""
    if isinstance(layer, Conv1D):
        return MuBranchConv1D.from_conv1d(layer, multiplier)
    if isinstance(layer, nn.Linear):
        return MuBranch.from_linear(layer, multiplier)
    raise TypeError(f"a residual branch must end in a Linear or Conv1D, got {type(layer).__name__}")


def _take_over(old: Any, new: Any) -> Any:
    """Give `new` the parameters and the initialisation state of `old`."""
    new.weight, new.bias = old.weight, old.bias
    new.training = old.training
    for flag in _FLAGS:
        if flag in old.__dict__:
            setattr(new, flag, old.__dict__[flag])
    return new
