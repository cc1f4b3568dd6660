"""The parametrisations as tables: a parameter's role decides how its hyperparameters move with width, and with depth.

A *role* says which dimensions of a tensor grow with width: `input` maps a finite dimension to an infinite one
(embeddings), `hidden` maps infinite to infinite (matrix-like), `readout` maps infinite to finite (`lm_head`), `vector`
has one infinite dimension and no fan-in (norms, biases), `finite` has none. A `router` is a readout inside the network
(a mixture's gate): its 1/r lies in initialisation and learning rate, which under Adam is the same as a multiplier.

A *rule* gives exponents of the width multiplier r = fan_in / fan_in at base width: with exponent e, the quantity at
width multiplier r is its base value times r**(-e). Table 2 of nanoLM (Yao et al. 2023), which is Table 8 of Tensor
Programs V (Yang et al. 2022), is `MUP`; standard parametrisation changes nothing with width.

Depth is a table of its own, in powers of the depth multiplier layers / base layers. `COMPLETE_P` (Dey et al. 2025,
α = 1) divides what each residual branch adds, and Adam's eps within the layers, by it; learning rates stay as they are.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["input", "hidden", "readout", "vector", "finite", "router"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Rule:
    """Exponents of 1/r for the initial standard deviation, Adam's learning rate and eps, and the forward multiplier.

    >>> Rule(lr=1).scale("lr", 4.0)
    0.25
    """

    init: float = 0.0
    lr: float = 0.0
    multiplier: float = 0.0
    eps: float = 0.0

    def scale(self, quantity: Literal["init", "lr", "multiplier", "eps"], r: float) -> float:
        """Return r**(-exponent), the factor on `quantity` at width multiplier `r` (dimensionless)."""
        return float(r) ** -getattr(self, quantity)


Parametrization = dict[str, Rule]

SP: Parametrization = {role: Rule() for role in ROLES}

MUP: Parametrization = {
    "input": Rule(),
    "hidden": Rule(init=0.5, lr=1.0),
    "readout": Rule(multiplier=1.0),
    "vector": Rule(),
    "finite": Rule(),
    "router": Rule(init=1.0, lr=1.0),
}

PARAMETRIZATIONS: dict[str, Parametrization] = {"mup": MUP, "sp": SP}

FIXED_DEPTH: Rule = Rule()
COMPLETE_P: Rule = Rule(multiplier=1.0, eps=1.0)

DEPTH_PARAMETRIZATIONS: dict[str, Rule] = {"none": FIXED_DEPTH, "completep": COMPLETE_P}
"""What each says of a residual branch, in powers of 1 / depth multiplier."""


@dataclass(frozen=True)
class ParameterScale:
    """One parameter's place in the tables: its role, and the ratios of its fan-in and fan-out to those at base width.

    `fan_in` and `fan_out` are 1.0 along a finite dimension. They differ where, say, the FFN ratio is not the base's.
    `depth` is the depth multiplier of a parameter inside a layer, 1.0 outside.
    """

    role: str
    fan_in: float = 1.0
    fan_out: float = 1.0
    depth: float = 1.0
