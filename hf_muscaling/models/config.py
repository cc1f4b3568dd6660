"""A config that knows its base width: the fields and methods that every μP architecture shares.

The base shapes live in the config (`mup_base`), so that `from_pretrained`, `deepcopy`, FSDP, `torch.compile` and the
Hub keep them. Nothing is pinned on parameters, which wrappers would lose.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.parametrization import DEPTH_PARAMETRIZATIONS, FIXED_DEPTH, PARAMETRIZATIONS


def stock_class(cls: type) -> type:
    """Return the transformers class that a μP class extends."""
    return next(c for c in cls.__mro__ if c.__module__.startswith("transformers."))


@dataclass(kw_only=True, repr=False, eq=False)
class MuConfigMixin:
    """μP settings on top of a stock config: mix in before it, `class MuXConfig(MuConfigMixin, XConfig)`.

    `mup_base` holds the base shapes, `parametrization` is "mup" or, as a control, "sp", `depth_parametrization`
    "none" or "completep", `output_multiplier` is τ; `zero_query` and `zero_readout` start these weights at zero (the
    latter with an untied head only). A config with `mup_base=None` *is* the base; `at_width` derives every other
    width from it.
    """

    mu_width_fields: ClassVar[tuple[str, ...]]
    """Stock fields that grow in proportion to the width, the hidden size first, the number of heads second."""
    mu_depth_fields: ClassVar[tuple[str, ...]] = ("num_hidden_layers",)
    """Stock fields that grow in proportion to the depth, the number of layers first."""

    mup_base: dict | None = None
    parametrization: str = "mup"
    depth_parametrization: str = "none"
    output_multiplier: float | int = 1.0
    zero_query: bool = False
    zero_readout: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.validate_mu()

    def validate_mu(self) -> None:
        """Refuse an impossible combination of μP settings. Raises ConfigurationError."""
        name = type(self).__name__
        if "base_width" in vars(self):  # transformers keeps any keyword, and this one is the likeliest mistake
            raise ConfigurationError(
                f"{name} has no field base_width: a config without mup_base is the base itself. Build it at the base "
                f"width and call at_width(width), or use {name}.from_stock(config, base_width=…)."
            )
        if self.parametrization not in PARAMETRIZATIONS:
            raise ConfigurationError(
                f"{name}: parametrization={self.parametrization!r} is unknown; use one of {sorted(PARAMETRIZATIONS)}."
            )
        if self.depth_parametrization not in DEPTH_PARAMETRIZATIONS:
            raise ConfigurationError(
                f"{name}: depth_parametrization={self.depth_parametrization!r} is unknown; use one of "
                f"{sorted(DEPTH_PARAMETRIZATIONS)}."
            )
        for field in ("zero_query", "zero_readout"):
            if not isinstance(getattr(self, field), bool):
                raise ConfigurationError(f"{name}: {field}={getattr(self, field)!r} must be True or False.")
        tau = self.output_multiplier
        if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not 0 < tau < float("inf"):
            raise ConfigurationError(f"{name}: output_multiplier={tau!r} must be a positive number.")
        if self.zero_readout and self.tie_word_embeddings:
            raise ConfigurationError(
                f"{name}: zero_readout=True with tie_word_embeddings=True would zero the input embedding as well; "
                "untie the head (tie_word_embeddings=False) or leave zero_readout off."
            )
        if self.head_size * self.num_attention_heads != self.hidden_size and not self.mu_fixed_fields():
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

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Read a config; that of another model type is a ConfigurationError, where transformers warns and goes on.

        Weights trained under the standard parametrisation are not μP's: they would be taken for a base model.
        """
        found = config_dict.get("model_type")
        if found not in (None, cls.model_type):
            raise ConfigurationError(
                f"{cls.__name__} reads a {cls.model_type!r} model, and this is a {found!r} one; load it with its own "
                "class, or build a fresh μP model with from_stock(config, base_width=…)."
            )
        return super().from_dict(config_dict, **kwargs)

    @property
    def head_size(self) -> int:
        """Return the size of one attention head, the dimension that stays fixed while width grows."""
        return getattr(self, "head_dim", None) or self.hidden_size // self.num_attention_heads

    @property
    def base_head_size(self) -> int:
        """Return the size of one attention head at base width."""
        base = self.to_mup_base()
        width, heads = (base[field] for field in self.mu_width_fields[:2])
        return next((base[field] for field in self.mu_fixed_fields() if base[field]), width // heads)

    @property
    def is_standard(self) -> bool:
        """Whether the config asks for the standard parametrisation, in which nothing follows the width."""
        return self.parametrization == "sp"

    @property
    def width_multiplier(self) -> float:
        """Return r = width / base width."""
        return self.hidden_size / self.to_mup_base()[self.mu_width_fields[0]]

    @property
    def depth_multiplier(self) -> float:
        """Return layers / base layers if a depth parametrisation is on, else 1."""
        if DEPTH_PARAMETRIZATIONS[self.depth_parametrization] == FIXED_DEPTH:
            return 1.0
        field = self.mu_depth_fields[0]
        return getattr(self, field) / self.to_mup_base()[field]

    @classmethod
    def mu_fixed_fields(cls) -> tuple[str, ...]:
        """Return the stock fields that `at_width` must keep although transformers derives them from the width."""
        head = cls.attribute_map.get("head_dim", "head_dim")
        return (head,) if head in cls.__dataclass_fields__ else ()

    @classmethod
    def mu_base_fields(cls) -> tuple[str, ...]:
        """Return the keys of `mup_base`."""
        return (*cls.mu_width_fields, *cls.mu_fixed_fields(), *cls.mu_depth_fields)

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
        if isinstance(width, bool) or not isinstance(width, int) or width <= 0:
            raise ConfigurationError(f"The width must be a positive whole number, got {width!r}.")
        changes: dict[str, int | None] = {}
        for field in self.mu_width_fields:
            if base[field] is None:
                continue
            scaled = base[field] * width / hidden
            if scaled != round(scaled) and "head" in field:  # an FFN size may be rounded
                step = next(
                    w
                    for w in range(1, hidden + 1)
                    if all(base[f] * w % hidden == 0 for f in self.mu_width_fields if "head" in f and base[f])
                )
                below = max(width // step, 1) * step
                raise ConfigurationError(
                    f"Width {width} would need {field}={scaled:g}: with head size {self.base_head_size} fixed (base "
                    f"width {hidden}, {field}={base[field]}) a width must be a multiple of {step}; the nearest are "
                    f"{below} and {below + step}."
                )
            changes[field] = round(scaled)
        fixed = {k: base[k] for k in self.mu_fixed_fields()}
        return self.replace(**changes, **fixed, mup_base=base)

    def at_depth(self, layers: int):
        """Return the config of the same design and width with another number of layers.

        Without a depth parametrisation (`depth_parametrization="completep"`) nothing but the number of layers follows.

        >>> from hf_muscaling import MuLlamaConfig
        >>> base = MuLlamaConfig(num_hidden_layers=2, depth_parametrization="completep")
        >>> base.at_depth(8).num_hidden_layers, base.at_depth(8).depth_multiplier
        (8, 4.0)

        Raises ConfigurationError if `layers` is not a positive whole number.
        """
        if isinstance(layers, bool) or not isinstance(layers, int) or layers <= 0:
            raise ConfigurationError(f"The number of layers must be a positive whole number, got {layers!r}.")
        base, first = self.to_mup_base(), self.mu_depth_fields[0]
        changes = {f: max(round(base[f] * layers / base[first]), 1) for f in self.mu_depth_fields}
        return self.replace(**changes, mup_base=base)

    def base_config(self):
        """Return the config of the same design and depth at base width."""
        depth = {field: getattr(self, field) for field in self.mu_depth_fields}
        return self.replace(**(self.to_mup_base() | depth), mup_base=None)

    def to_stock_config(self) -> PreTrainedConfig:
        """Return the stock transformers config of the same shapes (its parametrisation is the standard one)."""
        skip = (*(field.name for field in fields(MuConfigMixin)), "model_type", "transformers_version", "architectures")
        return stock_class(type(self))(**{k: v for k, v in self.to_dict().items() if k not in skip})

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
        stock = stock_class(cls)
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


def require_mu_config(config: Any, what: str) -> None:
    """Raise ConfigurationError, naming the remedy, unless `config` carries a parametrisation."""
    if not isinstance(config, MuConfigMixin):
        remedy = "build one with mu_config(config)" if isinstance(config, PreTrainedConfig) else "pass model.config"
        raise ConfigurationError(f"{what} needs a μP config, got {type(config).__name__}: {remedy}.")
