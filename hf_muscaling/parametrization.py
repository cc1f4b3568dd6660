"""The two parametrisations as tables: a parameter's role decides how its hyperparameters move with width.

A *role* says which dimensions of a tensor grow with width: `input` maps a finite dimension to an infinite one
(embeddings), `hidden` maps infinite to infinite (matrix-like), `readout` maps infinite to finite (`lm_head`), `vector`
has one infinite dimension and no fan-in (norms, biases), `finite` has none.

A *rule* gives exponents of the width multiplier r = fan_in / fan_in at base width: with exponent e, the quantity at
width multiplier r is its base value times r**(-e). Table 2 of nanoLM (Yao et al. 2023), which is Table 8 of Tensor
Programs V (Yang et al. 2022), is `MUP`; standard parametrisation changes nothing with width.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["input", "hidden", "readout", "vector", "finite"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Rule:
    """Exponents of 1/r for the initial standard deviation, the Adam learning rate and the forward multiplier.

    >>> Rule(lr=1).scale("lr", 4.0)
    0.25
    """

    init: float = 0.0
    lr: float = 0.0
    multiplier: float = 0.0

    def scale(self, quantity: Literal["init", "lr", "multiplier"], r: float) -> float:
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
}

PARAMETRIZATIONS: dict[str, Parametrization] = {"mup": MUP, "sp": SP}


@dataclass(frozen=True)
class ParameterScale:
    """One parameter's place in the table: its role, and the ratios of its fan-in and fan-out to those at base width.

    `fan_in` and `fan_out` are 1.0 along a finite dimension. They differ where, say, the FFN ratio is not the base's.
    """

    role: str
    fan_in: float = 1.0
    fan_out: float = 1.0
