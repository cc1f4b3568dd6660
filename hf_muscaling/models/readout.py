"""The readout layer of μP: a linear layer whose input is multiplied by τ/r."""

import torch
from torch import nn


class MuReadout(nn.Linear):
    """Map an infinite dimension to a finite one: y = W·(m·x) + bias, with m = τ / r held as a Python float.

    τ is the output multiplier at base width and r the fan-in's ratio to base width (nanoLM Table 2, "multiplier,
    output"). A float on the module survives deepcopy, FSDP's parameter swap, `torch.compile` and `from_pretrained`.

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
        readout.weight, readout.bias = linear.weight, linear.bias
        for flag in ("_is_hf_initialized", "_mu_initialized"):
            if flag in linear.__dict__:
                setattr(readout, flag, linear.__dict__[flag])
        return readout

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the logits; training and evaluation multiply alike."""
        return super().forward(input if self.multiplier == 1.0 else input * self.multiplier)

    def extra_repr(self) -> str:
        """Show the multiplier in `print(model)`."""
        return f"{super().extra_repr()}, multiplier={self.multiplier:g}"
