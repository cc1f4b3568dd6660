"""What a design costs at any width and depth, as polynomials that a page can evaluate.

Parameters, FLOPs of a step and bytes of a step are, at fixed sequence, vocabulary and head size, polynomials of second
degree in the width w and of first in the layers l:

    q(w, l) = p_0 + p_1·w + p_2·w² + l·(p_3 + p_4·w + p_5·w²)

so that six exact counts of small models give them exactly (a further count checks that), and the page needs no second
version of what `counting` and `memory` know of each architecture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any

from hf_muscaling.counting import encoder_decoder_step_flops, step_flops
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.memory import PRECISIONS, ModelSizes, model_sizes, training_memory

Polynomial = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Design:
    """An architecture whose width and depth are free, and the six coefficients of each quantity in `polynomials`.

    Widths are multiples of `width_step`. `sequence` are the tokens that the (first) stack sees of one sequence,
    `tokens` those of the text behind it, which D counts. `width` and `depth` are those of the config it came from.

    Quantities: `N`, `N_non_embedding`; `step_flops` of one sequence (nanoLM's count); `state`, the bytes of weights,
    gradients and AdamW's moments on one device; and for each precision, with and without gradient checkpointing
    (`_ckpt`), `fixed_…` and `sequence_…`, the other bytes of a step: those it always takes, and those of each sequence.
    """

    name: str
    sequence: int
    tokens: int
    width_step: int
    width: int
    depth: int
    polynomials: Mapping[str, Polynomial]

    @classmethod
    def of(
        cls,
        config: Any,
        sequence: int,
        *,
        targets: int | None = None,
        tokens: int | None = None,
        name: str | None = None,
    ) -> "Design":
        """Return the design of a μP config (GPT-2, Llama, BERT or T5); `targets` is the length of T5's decoder, and
        `tokens` of text, by default `sequence`, make a sequence.

        Raises ConfigurationError for another architecture, or a design whose counts are no such polynomials (an FFN
        size that is not proportional to the width).

        >>> from hf_muscaling import MuGPT2Config
        >>> design = Design.of(MuGPT2Config(n_embd=128, n_head=2, n_layer=2), sequence=1024)
        >>> int(design.at("N", width=768, depth=12)) == 124_439_808       # GPT-2 small
        True
        """
        base = config.replace(mup_base=None, depth_parametrization="none")
        shapes = [base.hidden_size] + [
            v for f in config.mu_width_fields if isinstance(v := getattr(base, f, None), int) and v > 0
        ]
        unit = base.hidden_size // gcd(*shapes)  # at its multiples every shape is a whole number
        found: dict[tuple[int, int], dict[str, Fraction]] = {}

        def counts(k: int, layers: int) -> dict[str, Fraction]:
            if (k, layers) not in found:
                model = _at(base, k * unit, layers)
                found[k, layers] = _quantities(model, model_sizes(model), sequence, targets)
            return found[k, layers]

        polynomials = {
            key: _solve([[counts(k, n)[key] for k in (1, 2, 3)] for n in (1, 2)], unit) for key in counts(1, 1)
        }
        check = counts(5, 4)
        for key, polynomial in polynomials.items():
            if _value(polynomial, 5 * unit, 4) != check[key]:
                raise ConfigurationError(
                    f"{type(config).__name__}: {key} is no polynomial in width and depth, so a page cannot compute it; "
                    "make its FFN size proportional to the width."
                )
        floats = {key: tuple(float(c) for c in polynomial) for key, polynomial in polynomials.items()}
        kind = config.model_type.removeprefix("mu_")
        return cls(
            name or _NAMES.get(kind, kind), sequence, tokens or sequence, unit, config.hidden_size,
            config.num_hidden_layers, floats,  # type: ignore[arg-type]
        )  # fmt: skip

    def at(self, quantity: str, width: int, depth: int) -> float:
        """Return a quantity at a width and depth, as the page computes it."""
        p = self.polynomials[quantity]
        return p[0] + p[1] * width + p[2] * width**2 + depth * (p[3] + p[4] * width + p[5] * width**2)

    def memory(self, width: int, depth: int, sequences: int, precision: str, checkpointing: bool) -> float:
        """Return the bytes of a step on one device, as the page computes them."""
        key = f"{precision}{'_ckpt' if checkpointing else ''}"
        rest = self.at(f"fixed_{key}", width, depth) + sequences * self.at(f"sequence_{key}", width, depth)
        return self.at("state", width, depth) + rest


_NAMES = {"gpt2": "GPT-2", "llama": "Llama", "bert": "BERT", "t5": "T5"}


def stock_designs() -> list[Design]:
    """Return the designs that a page offers when it knows nothing of the models: GPT-2's and Llama's shapes."""
    from hf_muscaling import MuGPT2Config, MuLlamaConfig

    gpt2 = MuGPT2Config(vocab_size=50257, n_positions=1024, n_embd=768, n_head=12, n_layer=12)
    llama = MuLlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_hidden_layers=32,
        max_position_embeddings=4096,
    )  # fmt: skip
    return [Design.of(llama, 4096, name="Llama shapes"), Design.of(gpt2, 1024, name="GPT-2 shapes")]


def _at(base: Any, width: int, layers: int) -> Any:
    return base.replace(**dict.fromkeys(base.mu_depth_fields, layers)).at_width(width)


def _quantities(config: Any, sizes: ModelSizes, sequence: int, targets: int | None) -> dict[str, Fraction]:
    """Return every quantity of one model, exactly."""
    width, layers, vocabulary = config.hidden_size, config.num_hidden_layers, config.vocab_size
    if targets is None:
        flops = step_flops(layers, width, sequence, vocabulary, 1)
    else:
        flops = encoder_decoder_step_flops(layers, width, sequence, targets, vocabulary, 1)
    found = {
        "N": Fraction(sizes.total),
        "N_non_embedding": Fraction(sizes.non_embedding),
        "step_flops": Fraction(round(flops)),
    }
    for precision in PRECISIONS:
        for checkpointing in (False, True):
            one, two = (
                training_memory(
                    config, n, sequence, targets, precision=precision, checkpointing=checkpointing, sizes=sizes
                )
                for n in (1, 2)
            )
            state = one.weights + one.gradients + one.optimizer
            key = f"{precision}{'_ckpt' if checkpointing else ''}"
            found["state"] = Fraction(state)
            found[f"sequence_{key}"] = Fraction(two.total) - Fraction(one.total)
            found[f"fixed_{key}"] = Fraction(one.total) - Fraction(state) - found[f"sequence_{key}"]
    return found


def _solve(values: list[list[Fraction]], unit: int) -> tuple[Fraction, ...]:
    """Return the coefficients from the values at 1 and 2 layers, each at 1, 2 and 3 units of width."""
    one, two = (_parabola(row, unit) for row in values)
    slope = [b - a for a, b in zip(one, two, strict=True)]
    return (*(a - s for a, s in zip(one, slope, strict=True)), *slope)


def _parabola(y: list[Fraction], unit: int) -> list[Fraction]:
    """Return c_0, c_1, c_2 of the parabola through (unit, y_0), (2·unit, y_1), (3·unit, y_2)."""
    second = (y[2] - 2 * y[1] + y[0]) / 2
    first = y[1] - y[0] - 3 * second
    return [y[0] - first - second, first / unit, second / unit**2]


def _value(p: tuple[Fraction, ...], width: int, depth: int) -> Fraction:
    return p[0] + p[1] * width + p[2] * width**2 + depth * (p[3] + p[4] * width + p[5] * width**2)
