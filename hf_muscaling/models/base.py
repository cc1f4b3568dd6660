"""What every μP architecture shares: a config that knows its base width, and a model that applies the table.

The config carries the base shapes (`mup_base`), so that `from_pretrained`, `deepcopy`, FSDP, `torch.compile` and the
Hub keep them; the model derives every multiplier from it by comparing its own shapes with those of the stock class at
base width on the `meta` device. Nothing is pinned on parameters, which wrappers would lose.
"""

import fnmatch
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.pytorch_utils import Conv1D

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.readout import MuReadout
from hf_muscaling.parametrization import PARAMETRIZATIONS, ROLES, ParameterScale, Parametrization

MU_FIELDS = ("mup_base", "parametrization", "output_multiplier", "zero_query", "zero_readout")


def _stock_class(cls: type) -> type:
    """Return the transformers class that a μP class extends."""
    return next(c for c in cls.__mro__ if c.__module__.startswith("transformers."))


class MuConfigMixin:
    """μP settings on top of a stock config; the fields themselves are annotated on each config class.

    A config with `mup_base=None` *is* the base; `at_width` derives every other width from it.
    """

    mu_width_fields: ClassVar[tuple[str, ...]]
    """Stock fields that grow in proportion to the width, the hidden size first, the number of heads second."""

    def validate_mu(self) -> None:
        """Refuse an impossible combination of μP settings. Raises ConfigurationError."""
        name = type(self).__name__
        if self.parametrization not in PARAMETRIZATIONS:
            raise ConfigurationError(
                f"{name}: parametrization={self.parametrization!r} is unknown; use one of {sorted(PARAMETRIZATIONS)}."
            )
        if not self.output_multiplier > 0:
            raise ConfigurationError(f"{name}: output_multiplier={self.output_multiplier!r} must be positive.")
        if self.zero_readout and self.tie_word_embeddings:
            raise ConfigurationError(
                f"{name}: zero_readout=True with tie_word_embeddings=True would zero the input embedding as well; "
                "untie the head (tie_word_embeddings=False) or leave zero_readout off."
            )
        if self.head_size * self.num_attention_heads != self.hidden_size and "head_dim" not in self.mu_fixed_fields():
            raise ConfigurationError(
                f"{name}: the width {self.hidden_size} is not divisible by the number of heads "
                f"{self.num_attention_heads}; choose a width that is a multiple of the head size."
            )
        if self.mup_base is not None:
            expected = set(self.mu_base_fields())
            if set(self.mup_base) != expected or not all(
                type(v) is int and v > 0 for v in self.mup_base.values() if v is not None
            ):
                raise ConfigurationError(
                    f"{name}: mup_base must give a positive whole number for each of {sorted(expected)}, got "
                    f"{self.mup_base!r}; build it with base.at_width(width) rather than by hand."
                )

    @property
    def head_size(self) -> int:
        """Return the size of one attention head, the dimension that stays fixed while width grows."""
        return getattr(self, "head_dim", None) or self.hidden_size // self.num_attention_heads

    @classmethod
    def mu_fixed_fields(cls) -> tuple[str, ...]:
        """Return the stock fields that `at_width` must keep although transformers derives them from the width."""
        return ("head_dim",) if "head_dim" in cls.__dataclass_fields__ else ()

    @classmethod
    def mu_base_fields(cls) -> tuple[str, ...]:
        """Return the keys of `mup_base`."""
        return (*cls.mu_width_fields, *cls.mu_fixed_fields(), "num_hidden_layers")

    @property
    def is_base(self) -> bool:
        """Whether this config is at base width (every multiplier is then 1, apart from `output_multiplier`)."""
        return self.mup_base is None or all(getattr(self, k) == v for k, v in self.mup_base.items())

    def to_mup_base(self) -> dict[str, int | None]:
        """Return the base shapes: this config's own where it is the base, else those that it carries."""
        return dict(self.mup_base) if self.mup_base else {k: getattr(self, k) for k in self.mu_base_fields()}

    def replace(self, **changes: Any):
        """Return a copy with some fields changed; an unknown field is a ConfigurationError."""
        fields = {k: v for k, v in self.to_dict().items() if k not in ("model_type", "transformers_version")}
        unknown = sorted(set(changes) - set(type(self).__dataclass_fields__) - set(self.attribute_map))
        if unknown:
            raise ConfigurationError(f"{type(self).__name__} has no field {', '.join(unknown)}; check the spelling.")
        changes = {self.attribute_map.get(k, k): v for k, v in changes.items()}
        return type(self)(**(fields | changes))

    def at_width(self, width: int):
        """Return the config of the same design at another width: every infinite dimension follows, head size is fixed.

        The base width is this config's own if it is the base, else the one that it carries. Example:

        >>> from hf_muscaling import MuLlamaConfig
        >>> base = MuLlamaConfig(hidden_size=64, intermediate_size=176, num_attention_heads=4, num_key_value_heads=2)
        >>> wide = base.at_width(256)
        >>> wide.num_attention_heads, wide.num_key_value_heads, wide.intermediate_size, wide.head_dim
        (16, 8, 704, 16)

        Raises ConfigurationError if the width is not a multiple of the head size (or of the group of heads that share
        keys and values). Source: nanoLM §3 (head size fixed, number of heads grows).
        """
        base = self.to_mup_base()
        hidden = base[self.mu_width_fields[0]]
        heads = base[self.mu_width_fields[1]]
        if isinstance(width, bool) or not isinstance(width, int) or width <= 0:
            raise ConfigurationError(f"The width must be a positive whole number, got {width!r}.")
        head_size = hidden // heads if "head_dim" not in base else base["head_dim"]
        changes: dict[str, int | None] = {}
        for field in self.mu_width_fields:
            if base[field] is None:
                continue
            scaled = base[field] * width / hidden
            if scaled != round(scaled) and not field.startswith(("intermediate", "n_inner", "d_ff")):
                step = next(
                    w
                    for w in range(1, hidden + 1)
                    if all(base[f] * w % hidden == 0 for f in self.mu_width_fields if "head" in f and base[f])
                )
                below = max(width // step, 1) * step
                raise ConfigurationError(
                    f"Width {width} would need {field}={scaled:g}: with head size {head_size} fixed (base width "
                    f"{hidden}, {field}={base[field]}) a width must be a multiple of {step}; the nearest are {below} "
                    f"and {below + step}."
                )
            changes[field] = round(scaled)
        fixed = {k: base[k] for k in self.mu_fixed_fields()}
        return self.replace(**changes, **fixed, mup_base=base)

    def base_config(self):
        """Return the config of the same design at base width."""
        base = self.to_mup_base()
        return self.replace(**(base | {"num_hidden_layers": self.num_hidden_layers}), mup_base=None)

    def to_stock_config(self) -> PreTrainedConfig:
        """Return the stock transformers config of the same shapes (its parametrisation is the standard one)."""
        skip = (*MU_FIELDS, "model_type", "transformers_version", "architectures")
        return _stock_class(type(self))(**{k: v for k, v in self.to_dict().items() if k not in skip})

    @classmethod
    def from_stock(cls, config: PreTrainedConfig, base_width: int | None = None, **mu_settings: Any):
        """Return the μP config of a stock config, which becomes the base itself unless `base_width` is given.

        >>> from transformers import LlamaConfig
        >>> from hf_muscaling import MuLlamaConfig
        >>> MuLlamaConfig.from_stock(LlamaConfig(), base_width=256).mup_base["num_attention_heads"]
        2

        Raises ConfigurationError if the config is of another architecture or already carries a parametrisation of
        its own (transformers has an open proposal for one), which must not be applied twice.
        """
        stock = _stock_class(cls)
        if type(config) is not stock:
            raise ConfigurationError(
                f"{cls.__name__}.from_stock takes a {stock.__name__}, got {type(config).__name__}."
            )
        fields = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "transformers_version")}
        native = sorted(k for k in fields if k.startswith("mup") and fields[k])
        if native:
            raise ConfigurationError(
                f"The {stock.__name__} already sets {', '.join(native)}: μP would apply twice; remove these fields."
            )
        target = cls(**fields, **mu_settings)
        if base_width is None:
            return target
        return target.replace(mup_base=target.at_width(base_width).replace(mup_base=None).to_mup_base())


def parameter_fans(module: nn.Module, shape: torch.Size) -> tuple[int | None, int | None]:
    """Return the indices of a weight's fan-in and fan-out dimensions; GPT-2's Conv1D stores (in, out)."""
    if len(shape) < 2:
        return None, 0 if len(shape) == 1 else None
    return (0, 1) if isinstance(module, Conv1D) else (1, 0)


def _matches(name: str, pattern: str) -> bool:
    return _compiled(pattern).fullmatch(name) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


class MuModelMixin:
    """Apply a parametrisation to a stock model class; mix in before it: `class MuX(MuModelMixin, X)`.

    A subclass says which parameter has which role (`mu_plan`: glob pattern → role; each parameter must match exactly
    one) and where the query projection sits (`mu_query`: pattern → (dimension, blocks), the query being the first of
    so many equal blocks along that dimension).
    """

    mu_plan: ClassVar[dict[str, str]]
    mu_query: ClassVar[dict[str, tuple[int, int]]] = {}
    mu_loss_type: ClassVar[str | None] = None

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False for classes of this package: their initialisation is transformers' own, guarded per tensor.

        For custom code `initialize_weights` skips modules without parameters of their own, which would lose GPT-2's
        1/sqrt(2L) on a `c_proj` that a checkpoint lacks.
        """
        return cls.is_remote_code()

    def post_init(self) -> None:
        """Put the multipliers in place, then let transformers initialise and tie as usual."""
        if self.mu_loss_type is not None:
            # GPT-2's class name names no loss, so Trainer would divide by T targets a block instead of T - 1.
            self.loss_type = self.mu_loss_type
        self._install_multipliers()
        super().post_init()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the class normalises its loss by Trainer's `num_items_in_batch`; many take it and ignore it."""
        return self.mu_loss_type is not None

    @property
    def mu_rules(self) -> Parametrization:
        """Return the table of rules that the config asks for."""
        return PARAMETRIZATIONS[self.config.parametrization]

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
        return self.config.hidden_size / self.config.to_mup_base()[self.config.mu_width_fields[0]]

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

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize as transformers does, and keep the readout's multiplier, which a stock resize drops."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self._install_readout()
        return embeddings

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise as the stock class does at base width, then scale each new tensor's spread by its role's rule.

        std(w) = std_stock · r**(-init); loaded tensors and tensors already scaled stay as they are.
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
        factor = self.mu_rules[scale.role].scale("init", scale.fan_in)
        if factor != 1.0:
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
        if role == "input":  # an embedding stores (finite, infinite) and has no infinite fan-in
            return ParameterScale(role, 1.0, shape[-1] / base[-1])
        if role == "readout":
            return ParameterScale(role, shape[fan_in] / base[fan_in], 1.0)
        if role == "finite":
            return ParameterScale(role)
        return ParameterScale(
            role,
            1.0 if fan_in is None else shape[fan_in] / base[fan_in],
            1.0 if fan_out is None else shape[fan_out] / base[fan_out],
        )

    def _base_shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of the stock model at base width, built on `meta` (no memory, no random draws)."""
        config = self.config.base_config().to_stock_config()
        with torch.device("meta"):
            model = _stock_class(type(self))(config)
        return {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}

    def _install_multipliers(self) -> None:
        self.config.validate_mu()
        self._install_readout()
        base = self.config.to_mup_base()
        base_head = base.get("head_dim") or base[self.config.mu_width_fields[0]] // base[self.config.mu_width_fields[1]]
        if self.config.parametrization == "mup" and self.config.head_size != base_head:
            for attention in self._attention_modules():
                # 1/d instead of 1/sqrt(d) along the head dimension (Tensor Programs V, Definition 4.1), equal to the
                # stock scaling at the base head size; multiplied so that a per-layer option of the stock class stays
                attention.scaling *= (base_head / self.config.head_size) ** 0.5

    def _install_readout(self) -> None:
        head = self.get_output_embeddings()
        if head is None:
            return
        base_width = self.config.to_mup_base()[self.config.mu_width_fields[0]]
        rule = self.mu_rules["readout"]
        multiplier = self.config.output_multiplier * rule.scale("multiplier", head.in_features / base_width)
        self.set_output_embeddings(MuReadout.from_linear(head, multiplier))

    def _attention_modules(self) -> Iterator[nn.Module]:
        return (m for m in self.modules() if isinstance(getattr(m, "scaling", None), float))


def require_mu_model(model: Any, what: str) -> "PreTrainedModel":
    """Return `model` unwrapped if it carries a parametrisation, else raise ConfigurationError naming the remedy."""
    inner = model
    while not hasattr(inner, "mu_table") and isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    inner = getattr(inner, "_orig_mod", inner)
    if not hasattr(inner, "mu_table"):
        name = type(inner).__name__
        raise ConfigurationError(
            f"{what} needs a μP model, got {name}: use its μP variant Mu{name} with "
            f"Mu{name}.config_class.from_stock(config, base_width=…), or transformers' own Trainer and optimizers."
        )
    return inner
