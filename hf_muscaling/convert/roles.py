"""Derive each parameter's role from the dimensions that grow between two widths, on the `meta` device.

This is what `mup` does with base and delta shapes (Tensor Programs V, Appendix H), done by name and only with modules
whose layout is known. Where shapes do not settle a role, the parameter is named together with the line to add.
"""

import fnmatch
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.parametrization import ROLES

_SIZES = ("_size", "_dim", "_rank", "_hidden", "_ffn", "_inner")
_EMBEDDING_MULTIPLIERS = ("embed_scale", "scalar_embed_scale")


@dataclass(frozen=True)
class Place:
    """A parameter's role, and the indices of its infinite fan-in and fan-out dimensions."""

    role: str
    fan_in: int | None = None
    fan_out: int | None = None
    layout_known: bool = True


@dataclass(frozen=True)
class Derivation:
    """What the shapes of a design at two widths say."""

    places: dict[str, Place]
    readouts: dict[str, int]
    """Linear layers that map an infinite dimension to a finite one, and their fan-in at base width."""
    floats: dict[str, float]
    """Multipliers that the stock class derives from the width (`module.attribute`), and their values at base width."""
    fixed_heads: tuple[str, ...]
    """Attention modules that carry no `scaling`: right as long as the head size is the base's."""


def collapse(name: str) -> str:
    """Return a parameter's name with the numbers of its layers as `*`: one pattern for all layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def derive(build: Callable[[Any], nn.Module], base: Any, wide: Any, factor: int, plan: Mapping[str, str]) -> Derivation:
    """Return the roles of a design from its stock configs at base width and at `factor` times the base width.

    `build` makes the stock model of a config; `plan` is the user's. Raises ConfigurationError, with every doubtful
    parameter and the line to add for each, where the derivation is not sure.
    """
    narrow_model: Any
    wide_model: Any
    with torch.device("meta"):
        narrow_model, wide_model = build(base), build(wide)
    name = type(wide_model).__name__
    used: set[str] = set()
    whole = hasattr(
        wide_model, wide_model.base_model_prefix
    )  # a base model may lie in one that the plan was written for
    if not whole:
        plan = {k.removeprefix(f"{wide_model.base_model_prefix}."): word for k, word in plan.items()}
    head = _head(wide_model)
    attention = _attention_without_scaling(wide_model)
    fixed_heads = [n for n, _ in wide_model.named_modules() if _planned(n, plan, ("fixed_head",), used)]
    floats = _width_multipliers(narrow_model, wide_model, plan, used)
    doubts = {collapse(n): f'"{collapse(n)}": "fixed_head"' for n in attention if n not in fixed_heads}
    reasons = dict.fromkeys(doubts, "attention whose `scaling` cannot be set; it stays right while head size is fixed")

    narrow = {n: p.shape for n, p in narrow_model.named_parameters(remove_duplicate=False)}
    modules = dict(wide_model.named_modules(remove_duplicate=False))
    places: dict[str, Place] = {}
    readouts = {} if head is None else {head: _in_features(narrow_model, head)}
    for parameter, tensor in wide_model.named_parameters(remove_duplicate=False):
        owner = parameter.rpartition(".")[0]
        place, doubt = _place(modules[owner], narrow.get(parameter), tensor.shape, factor, owner == head)
        role = _planned(parameter, plan, ROLES, used)
        if role is not None:
            if place is not None and place.role != role:
                warnings.warn(
                    f"{name}: the plan makes {parameter} {role!r}, its shapes say {place.role!r}.", stacklevel=2
                )
            place = _as_planned(role, modules[owner], narrow[parameter], tensor.shape, parameter)
            if role == "readout":
                readouts[owner] = _in_features(narrow_model, owner)
        elif place is None:
            pattern = collapse(parameter)
            reasons.setdefault(pattern, doubt)
            doubts.setdefault(pattern, _addition(pattern, doubt, tensor.shape, narrow.get(parameter), wide))
            continue
        places[parameter] = place
    if doubts:
        lines = "; ".join(f"{n} ({reasons[n]})" for n in list(doubts)[:6])
        more = f" and {len(doubts) - 6} more" if len(doubts) > 6 else ""
        raise ConfigurationError(
            f"{name} cannot be converted without being told: {lines}{more}. If you know better, add "
            f"plan={{{', '.join(dict.fromkeys(list(doubts.values())[:6]))}}}."
        )
    fields = list(getattr(wide, "__dataclass_fields__", {}))
    unused = [p for p in plan if p not in used and not fnmatch.filter(fields, p)]
    if unused and whole:
        raise ConfigurationError(
            f"{name}: the plan's {', '.join(map(repr, unused))} matches nothing; parameters are named as in "
            "model.named_parameters(), with * for any part."
        )
    return Derivation(places, readouts, floats, tuple(fixed_heads))


def _place(
    module: nn.Module, narrow: torch.Size | None, wide: torch.Size, factor: int, is_head: bool
) -> tuple[Place | None, str]:
    """Return the place that shapes and layout settle, or None and the reason why they do not."""
    if narrow is None or len(narrow) != len(wide):
        return None, f"{tuple(wide)} has no counterpart at another width"
    fused = [d for d, (n, w) in enumerate(zip(narrow, wide, strict=True)) if w not in (n, n * factor)]
    if fused:
        return None, (
            f"dimension {fused[0]} goes from {narrow[fused[0]]} to {wide[fused[0]]} at {factor} times the width: a "
            "part that grows and one that does not are fused, as with a constant number of key/value heads"
        )
    grown = tuple(d for d, (n, w) in enumerate(zip(narrow, wide, strict=True)) if w != n)
    if not grown:
        return Place("finite"), ""
    if len(wide) == 1:
        return Place("vector", fan_out=0), ""
    if len(grown) == 2:
        if len(wide) == 2 and isinstance(module, nn.Linear | Conv1D):
            return (Place("hidden", 0, 1) if isinstance(module, Conv1D) else Place("hidden", 1, 0)), ""
        if isinstance(module, nn.Embedding):
            return None, "an embedding whose number of rows grows with the width"
        return Place("hidden", grown[1], grown[0], layout_known=False), ""  # the experts of a mixture, a convolution
    if len(wide) == 2 and isinstance(module, nn.Embedding):
        return (Place("input", fan_out=1), "") if grown == (1,) else (None, "an embedding with more rows at more width")
    if len(wide) == 2 and isinstance(module, nn.Linear | Conv1D):
        fan_in = 0 if isinstance(module, Conv1D) else 1
        if grown == (1 - fan_in,):
            return Place("input", fan_out=1 - fan_in), ""
        if is_head:
            return Place("readout", fan_in=fan_in), ""
    if len(wide) == 2 and grown == (1,):
        return None, "a finite fan-out inside the network, as a router or a classifier has"
    return None, f"a {type(module).__name__} of shape {tuple(wide)} with infinite dimensions {grown}"


def _addition(pattern: str, doubt: str, wide: torch.Size, narrow: torch.Size | None, config: Any) -> str:
    """Return the line of a plan to consider: a field that ought to follow the width, or the parameter's role."""
    finite = [w for n, w in zip(narrow or (), wide, strict=False) if n == w and w > 1]
    fields = [k for k, v in config.to_dict().items() if type(v) is int and v in finite and k.endswith(_SIZES)]
    if fields:
        return f'"{fields[0]}": "infinite"'
    return f'"{pattern}": "{"router" if "router" in doubt else "|".join(ROLES)}"'


def _as_planned(role: str, module: nn.Module, narrow: torch.Size, wide: torch.Size, name: str) -> Place:
    grown = [d for d, (n, w) in enumerate(zip(narrow, wide, strict=True)) if w != n]
    if role in ("readout", "router", "hidden") and not grown:
        raise ConfigurationError(f"The plan makes {name} {role!r}, but none of its dimensions {tuple(wide)} grows.")
    if role == "readout" and not isinstance(module, nn.Linear):
        raise ConfigurationError(
            f"The plan makes {name} a 'readout', whose input is multiplied; that needs a Linear layer, not "
            f'{type(module).__name__}. "router" does the same through initialisation and learning rate.'
        )
    if role == "hidden":
        return Place(role, grown[-1], grown[0], layout_known=False)
    if role in ("readout", "router"):
        return Place(role, fan_in=grown[-1])
    return Place(role, fan_out=grown[0] if grown and role != "finite" else None)


def _planned(name: str, plan: Mapping[str, str], words: tuple[str, ...], used: set[str]) -> str | None:
    """Return the word of `words` that the plan gives a name; several different ones are a ConfigurationError."""
    hits = {p: w for p, w in plan.items() if w in words and fnmatch.fnmatchcase(name, p)}
    used.update(hits)
    if len(set(hits.values())) > 1:
        raise ConfigurationError(f"The plan gives {name} several words: {hits}; narrow the patterns.")
    return next(iter(hits.values()), None)


def _head(model: Any) -> str | None:
    """Return the name of the readout. Raises ConfigurationError for a language model that does not tell it."""
    head = model.get_output_embeddings()
    if head is None:
        if re.search(r"LMHead|ForCausalLM|ForMaskedLM|ForConditionalGeneration|ForPreTraining", type(model).__name__):
            raise ConfigurationError(
                f"{type(model).__name__}.get_output_embeddings() returns nothing: the readout, whose multiplier is "
                "τ/r, cannot be found; write a subclass that returns it."
            )
        return None
    name = next((n for n, m in model.named_modules() if m is head), None)
    if name is None or not isinstance(head, nn.Linear):
        raise ConfigurationError(
            f"{type(model).__name__}.get_output_embeddings() returns a {type(head).__name__}, not one of its Linear "
            "layers: the readout's multiplier has no place."
        )
    return name


def _in_features(model: nn.Module, name: str) -> int:
    return model.get_submodule(name).in_features  # type: ignore[return-value]


def _attention_without_scaling(model: nn.Module) -> list[str]:
    """Return the innermost attention modules that neither hold a float `scaling` nor lie in one that does.

    Raises ConfigurationError if the model has no attention at all: μP's rules here are those of a transformer.
    """
    named = {n: m for n, m in model.named_modules() if re.search(r"Attention|Attn", type(m).__name__)}
    inner = [n for n in named if not any(o.startswith(f"{n}.") for o in named)]
    if not inner:
        raise ConfigurationError(
            f"{type(model).__name__} has no attention layer: the roles are those of a transformer, and a state "
            "space or recurrent layer has infinite dimensions that they do not describe."
        )
    scaled = {n for n, m in named.items() if isinstance(getattr(m, "scaling", None), float)}
    return [n for n in inner if not any(n == s or n.startswith(f"{s}.") for s in scaled)]


def _width_multipliers(narrow: nn.Module, wide: nn.Module, plan: Mapping[str, str], used: set[str]) -> dict[str, float]:
    """Return the float attributes of modules that follow the width, with their values at base width.

    Those of embeddings (√d in Gemma and the BART family) are known; others must be in the plan.
    """
    found, doubts = {}, {}
    modules = dict(narrow.named_modules())
    for name, module in wide.named_modules():
        for attribute, value in vars(module).items():
            base = getattr(modules.get(name), attribute, None)
            if not (isinstance(value, float) and isinstance(base, float) and value != base):
                continue
            full = f"{name}.{attribute}"
            if attribute in _EMBEDDING_MULTIPLIERS or _planned(full, plan, ("constant",), used):
                found[full] = base
            else:
                doubts[collapse(full)] = f"{base:g} → {value:g}"
    if doubts:
        lines = ", ".join(f"{n} ({change})" for n, change in doubts.items())
        additions = ", ".join(f'"{n}": "constant"' for n in doubts)
        raise ConfigurationError(
            f"{type(wide).__name__} derives multipliers from its width: {lines}. Add plan={{{additions}}} to keep them "
            "at their values at base width."
        )
    return found
