"""What every μP architecture shares: a model that applies the tables to a stock class.

Every multiplier is derived from the config's base shapes (`MuConfigMixin`) by comparing the model's own shapes with
those of the stock class at base width on the `meta` device.
"""

import fnmatch
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.pytorch_utils import Conv1D

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.config import MuConfigMixin, stock_class
from hf_muscaling.models.multipliers import MuReadout, branch_layer
from hf_muscaling.models.pretraining import Objective
from hf_muscaling.parametrization import (
    DEPTH_PARAMETRIZATIONS,
    PARAMETRIZATIONS,
    ROLES,
    ParameterScale,
    Parametrization,
    Rule,
)


def parameter_fans(module: nn.Module, shape: torch.Size) -> tuple[int | None, int | None]:
    """Return the indices of a weight's fan-in and fan-out dimensions; GPT-2's Conv1D stores (in, out)."""
    if len(shape) < 2:
        return None, 0 if len(shape) == 1 else None
    return (0, 1) if isinstance(module, Conv1D) else (1, 0)


_IN_A_LAYER = re.compile(r"\.\d+\.")


def _matches(name: str, pattern: str) -> bool:
    return _compiled(pattern).fullmatch(name) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


class MuModelMixin:
    """Apply a parametrisation to a stock model class; mix in before it: `class MuX(MuModelMixin, X)`.

    A subclass says which parameter has which role (`mu_plan`: glob pattern → role; each parameter must match exactly
    one), where the query projection sits (`mu_query`: pattern → (dimension, blocks), the query being the first of so
    many equal blocks along that dimension) and which layers end a residual branch (`mu_branches`).
    """

    mu_plan: ClassVar[dict[str, str]]
    mu_query: ClassVar[dict[str, tuple[int, int]]] = {}
    mu_branches: ClassVar[tuple[str, ...]] = ()
    mu_objective: ClassVar[Objective | None] = None
    """What the class is pretrained for; None for a loss of its own that is no mean over tokens, as a classifier's."""
    mu_counts_targets: ClassVar[bool] = False
    """Whether the class divides its loss by Trainer's `num_items_in_batch`; many take it and ignore it."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        if not isinstance(config, MuConfigMixin):
            wanted = self.config_class.__name__
            raise ConfigurationError(
                f"{type(self).__name__} takes a {wanted}, got {type(config).__name__}; build one with "
                f"{wanted}.from_stock(config, base_width=…)."
            )
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False for classes of this package: their initialisation is transformers' own, guarded per tensor.

        For custom code `initialize_weights` skips modules without parameters of their own, which would lose GPT-2's
        1/sqrt(2L) on a `c_proj` that a checkpoint lacks.
        """
        return cls.is_remote_code()

    def post_init(self) -> None:
        """Put the multipliers in place, then let transformers initialise and tie as usual."""
        if self.mu_objective == "causal":
            # GPT-2's class name names no loss, so Trainer would divide by T targets a block instead of T - 1.
            self.loss_type = "ForCausalLM"
        self.config.validate_mu()
        self._install_readouts()
        self._install_branches()
        self._scale_attention()
        super().post_init()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Tell Trainer whether the class divides its loss by `num_items_in_batch`."""
        return self.mu_counts_targets

    @property
    def mu_rules(self) -> Parametrization:
        """Return the table of rules over width that the config asks for."""
        return PARAMETRIZATIONS[self.config.parametrization]

    @property
    def mu_depth_rule(self) -> Rule:
        """Return the rule over depth that the config asks for."""
        return DEPTH_PARAMETRIZATIONS[self.config.depth_parametrization]

    def mu_table(self) -> dict[str, ParameterScale]:
        """Return each parameter's role and its fan-in and fan-out ratios to base width, by name.

        Raises ConfigurationError if a parameter fits no pattern of `mu_plan` or several, or if the base shapes belong
        to another design.
        """
        base_shapes = self._base_shapes()
        table = {}
        for name, parameter in self.named_parameters():
            base = base_shapes.get(name)
            if base is None or len(base) != parameter.dim():
                raise ConfigurationError(
                    f"{type(self).__name__}: parameter {name} {tuple(parameter.shape)} has no counterpart in the model"
                    f" at base width ({base}); mup_base={self.config.mup_base} is of another design."
                )
            table[name] = self._scale_of(name, parameter.shape, base)
        return table

    def width_multiplier(self) -> float:
        """Return r = width / base width."""
        return self.config.width_multiplier

    def mu_role(self, name: str) -> str:
        """Return the role that `mu_plan` gives to a parameter. Raises ConfigurationError unless exactly one fits."""
        roles = [role for pattern, role in self.mu_plan.items() if _matches(name, pattern)]
        if len(roles) != 1 or roles[0] not in ROLES:
            raise ConfigurationError(
                f"{type(self).__name__}: parameter {name} matches {len(roles)} patterns of mu_plan instead of one; "
                f'add or narrow a line \'"<pattern>": "<role>"\' (roles: {", ".join(ROLES)}) in '
                f"{type(self).__module__}."
            )
        return roles[0]

    def stock_init_ratio(self, name: str, scale: ParameterScale) -> float:
        """Return std here / std at base shapes of the stock class's own initialisation of a parameter.

        1 where transformers draws with a constant `initializer_range`; a class whose stock initialisation follows the
        shapes, as T5's fan-in one does, overrides this, lest the width be counted twice.
        """
        return 1.0

    def mu_readout_multiplier(self, scale: ParameterScale, *, token_logits: bool) -> float:
        """Return the factor m on a readout's input: τ/r for token logits, 1/r for any other head."""
        tau = self.config.output_multiplier if token_logits else 1.0
        return tau * self.mu_rules["readout"].scale("multiplier", scale.fan_in)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize as transformers does, and keep the readout's multiplier, which a stock resize drops."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self._install_readouts()
        return embeddings

    def to_standard(self) -> PreTrainedModel:
        """Return the stock model with the same outputs, every multiplier folded in; see `hf_muscaling.export`."""
        from hf_muscaling.export import to_standard

        return to_standard(self)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise as the stock class does, then give each new tensor the spread that its role's rule asks for.

        std(w) = std_stock(base width) · r**(-init); loaded tensors and tensors already scaled stay as they are.
        """
        super().initialize_weights()
        table = self.mu_table()
        for prefix, module in self.named_modules():
            if getattr(module, "_mu_initialized", False):
                continue
            for short_name, parameter in module.named_parameters(recurse=False):
                name = f"{prefix}.{short_name}" if prefix else short_name
                if name in table:  # a tied weight is listed once, under its first name
                    self._initialize_parameter(name, parameter, table[name])
            module._mu_initialized = True

    def _initialize_parameter(self, name: str, parameter: nn.Parameter, scale: ParameterScale) -> None:
        value = parameter.detach()
        factor = self.mu_rules[scale.role].scale("init", scale.fan_in) / self.stock_init_ratio(name, scale)
        if factor != 1.0 and not self.config.is_standard:
            value = value * factor
        if self.config.zero_readout and scale.role == "readout":
            value = torch.zeros_like(value)
        if self.config.zero_query:
            for pattern, (dim, blocks) in self.mu_query.items():
                if _matches(name, pattern):
                    value = value.clone()
                    value.narrow(dim, 0, value.shape[dim] // blocks).zero_()
        if value is not parameter:
            init.copy_(parameter, value)  # leaves a tensor alone that came from a checkpoint

    def _scale_of(self, name: str, shape: torch.Size, base: torch.Size) -> ParameterScale:
        role = self.mu_role(name)
        fan_in, fan_out = parameter_fans(self.get_submodule(name.rpartition(".")[0]), shape)
        depth = self.config.depth_multiplier if _IN_A_LAYER.search(name) else 1.0
        if role == "input":  # an embedding stores (finite, infinite) and has no infinite fan-in
            return ParameterScale(role, 1.0, shape[-1] / base[-1], depth)
        if role == "readout":
            return ParameterScale(role, shape[fan_in] / base[fan_in], 1.0, depth)
        if role == "finite":
            return ParameterScale(role, depth=depth)
        return ParameterScale(
            role,
            1.0 if fan_in is None else shape[fan_in] / base[fan_in],
            1.0 if fan_out is None else shape[fan_out] / base[fan_out],
            depth,
        )

    def _base_shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of the stock model at base width, built on `meta` (no memory, no random draws)."""
        config = self.config.base_config().to_stock_config()
        with torch.device("meta"):
            model = stock_class(type(self))(config)
        return {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}

    def _install_readouts(self) -> None:
        head = self.get_output_embeddings()
        if head is not None and not any(m is head for _, m in self._modules_with_role("readout")):
            raise ConfigurationError(
                f"{type(self).__name__}: mu_plan must give its output embeddings the role 'readout'."
            )
        base_width = self.config.to_mup_base()[self.config.mu_width_fields[0]]
        for name, module in list(self._modules_with_role("readout")):
            scale = ParameterScale("readout", module.in_features / base_width)
            multiplier = self.mu_readout_multiplier(scale, token_logits=module is head)
            self.set_submodule(name, MuReadout.from_linear(module, multiplier))

    def _modules_with_role(self, role: str) -> Iterator[tuple[str, nn.Linear]]:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and self.mu_role(f"{name}.weight") == role:
                yield name, module

    def _install_branches(self) -> None:
        multiplier = self.mu_depth_rule.scale("multiplier", self.config.depth_multiplier)
        if multiplier == 1.0:
            return
        for name, module in list(self.named_modules()):
            if any(_matches(name, pattern) for pattern in self.mu_branches):
                self.set_submodule(name, branch_layer(module, multiplier))

    def _scale_attention(self) -> None:
        if self.config.is_standard or self.config.head_size == self.config.base_head_size:
            return
        for attention in self._attention_modules():
            # 1/d instead of 1/sqrt(d) along the head dimension (Tensor Programs V, Definition 4.1), equal to the
            # stock scaling at the base head size; multiplied so that a per-layer option of the stock class stays
            attention.scaling *= (self.config.base_head_size / self.config.head_size) ** 0.5

    def _attention_modules(self) -> Iterator[nn.Module]:
        """Return the attention modules that are this model's own to scale.

        A classifier may hold a μP model, which an Auto class built for it and which has scaled its own attention.
        """
        nested = [m for m in self.modules() if m is not self and isinstance(m, MuModelMixin)]
        done = {inner for outer in nested for inner in outer.modules()}
        return (m for m in self.modules() if isinstance(getattr(m, "scaling", None), float) and m not in done)


def require_mu_model(model: Any, what: str) -> "PreTrainedModel":
    """Return `model` unwrapped if it carries a parametrisation, else raise ConfigurationError naming the remedy."""
    inner = model
    while not hasattr(inner, "mu_table") and isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    inner = getattr(inner, "_orig_mod", inner)
    if not hasattr(inner, "mu_table"):
        name = type(inner).__name__
        if not isinstance(inner, nn.Module):
            raise ConfigurationError(f"{what} takes the μP model itself, got {name}.")
        raise ConfigurationError(
            f"{what} needs a μP model, got {name}: use its μP variant Mu{name} with "
            f"Mu{name}.config_class.from_stock(config, base_width=…), or transformers' own Trainer and optimizers."
        )
    return inner
