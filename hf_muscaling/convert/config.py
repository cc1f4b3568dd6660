"""The config class of a derived μP variant: which fields follow the width, and what a config must not carry already."""

import fnmatch
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.config import MuConfigMixin, stock_class
from hf_muscaling.parametrization import ROLES

CONVERT = "hf_muscaling.convert"
"""Module that the derived classes say they live in; it builds them by name, so that they can be imported from it."""

HEAD_FIELDS = (
    "num_key_value_heads", "num_kv_heads", "n_head_kv", "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
FFN_FIELDS = (
    "intermediate_size", "ffn_dim", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner",
    "hidden_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
)  # fmt: skip
EMBEDDING_FIELDS = ("embedding_size", "word_embed_proj_dim", "embedding_dim", "emb_dim")
DEPTH_FIELDS = ("encoder_layers", "decoder_layers", "num_decoder_layers")
FIELD_PLANS = ("infinite", "constant")
MODULE_PLANS = ("fixed_head", "constant")

_OWN_MULTIPLIER = re.compile(
    r".*(multipliers?|logits?_scale|logits_scaling|residual_scale)|scale_emb|scale_depth|dim_model_base|embedding_scale"
    r"|query_pre_attn_scalar"
)


class _WidthFields:
    """The fields that follow the width: those of the class, and those that one config adds (`mu_plan`, embeddings)."""

    def __get__(self, config: Any, owner: Any) -> tuple[str, ...]:
        fields = owner.mu_class_fields
        return fields if config is None else (*fields, *config.mu_followers())


@dataclass(kw_only=True, repr=False, eq=False)
class DerivedConfigMixin(MuConfigMixin):
    """A stock config with μP fields, and `mu_plan`: what the user added where the derivation is not sure.

    `mu_plan` maps a glob over parameter names to a role, a config field to "infinite" (follows the width) or
    "constant", a glob over attention modules to "fixed_head", a glob over `module.attribute` to "constant" (it keeps
    its value at base width).
    """

    mu_class_fields: ClassVar[tuple[str, ...]]
    mu_width_fields = _WidthFields()  # type: ignore[assignment]

    mu_plan: dict | None = None

    def validate_mu(self) -> None:
        """Refuse impossible μP settings and a plan with unknown words. Raises ConfigurationError."""
        super().validate_mu()
        if self.depth_parametrization != "none":
            raise ConfigurationError(
                f"{type(self).__name__}: depth_parametrization={self.depth_parametrization!r} needs to know which "
                "layers end a residual branch, which shapes do not tell; use a variant written by hand (MuLlamaConfig)."
            )
        allowed = {*ROLES, *FIELD_PLANS, *MODULE_PLANS}
        for key, value in (self.mu_plan or {}).items():
            if value not in allowed:
                raise ConfigurationError(
                    f"{type(self).__name__}: the plan gives {key!r} the unknown word {value!r}; use one of "
                    f"{', '.join(sorted(allowed))}."
                )

    def mu_followers(self) -> tuple[str, ...]:
        """Return the fields of this config that follow the width next to those of its class."""
        plan, known = self.mu_plan or {}, type(self).mu_class_fields
        named = [f for f, word in plan.items() if word == "infinite" and f in self.__dataclass_fields__]
        if self.mup_base:
            equal = [f for f in EMBEDDING_FIELDS if f in self.mup_base]
        else:  # an embedding as wide as the network is no projection: it follows
            equal = [f for f in EMBEDDING_FIELDS if getattr(self, f, None) == self.hidden_size and f not in plan]
        return tuple(dict.fromkeys(f for f in (*named, *equal) if f not in known))

    def mu_base_fields(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the keys of `mup_base`."""
        return (*self.mu_width_fields, *self.mu_fixed_fields(), *self.mu_depth_fields)

    def to_stock_config(self) -> PreTrainedConfig:
        """Return the stock transformers config of the same shapes (its parametrisation is the standard one)."""
        stock = super().to_stock_config()
        stock.__dict__.pop("mu_plan", None)
        return stock

    def smallest_width(self) -> int:
        """Return the narrowest width of the design that keeps at least two heads of every kind whole."""
        base: dict[str, Any] = self.to_mup_base()
        hidden, heads = (
            base[self.mu_width_fields[0]],
            [base[f] for f in self.mu_width_fields if "head" in f and base[f]],
        )
        unit = math.lcm(*(hidden // math.gcd(hidden, h) for h in heads))
        return unit * max(math.ceil(2 * hidden / (unit * h)) for h in heads)


def mu_config_class(stock: Any) -> Any:
    """Return the μP config class of a stock config class, `Mu` + its name, model type `mu_` + its model type.

    >>> from transformers import MistralConfig
    >>> mu_config_class(MistralConfig).model_type
    'mu_mistral'

    Raises ConfigurationError if the class has no hidden size or number of heads, or holds other configs.
    """
    return _mu_config_class(stock)


@cache
def _mu_config_class(stock: Any) -> Any:
    fields = getattr(stock, "__dataclass_fields__", {})
    mapped = getattr(stock, "attribute_map", {})
    hidden, heads, layers = (mapped.get(f, f) for f in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    missing = [f for f in (hidden, heads, layers) if f not in fields]
    if missing or stock.sub_configs:
        why = f"holds other configs ({', '.join(stock.sub_configs)})" if stock.sub_configs else f"lacks {missing[0]}"
        raise ConfigurationError(
            f"{stock.__name__} {why}: only a config of one text transformer, with a hidden size, attention heads and "
            "layers, can be converted."
        )
    follow = [f for f in (hidden, heads, *HEAD_FIELDS, *FFN_FIELDS) if f in fields]
    namespace = {
        "__module__": CONVERT,
        "__doc__": f"A `{stock.__name__}` that knows its base width, derived by `hf_muscaling.mu_variant`.",
        "model_type": f"mu_{stock.model_type}",
        "mu_class_fields": tuple(dict.fromkeys(follow)),
        "mu_depth_fields": tuple(dict.fromkeys(f for f in (layers, *DEPTH_FIELDS) if f in fields)),
    }  # fmt: skip
    return type(f"Mu{stock.__name__}", (DerivedConfigMixin, stock), namespace)


def refuse_unsure_config(config: DerivedConfigMixin) -> None:
    """Refuse a config whose design μP cannot be applied to without being told how. Raises ConfigurationError."""
    name, plan = stock_class(type(config)).__name__, config.mu_plan or {}
    fields = config.to_dict()
    native = sorted(k for k, v in fields.items() if k.startswith("mup") and k != "mup_base" and v)
    if native:
        raise ConfigurationError(f"The {name} already sets {', '.join(native)}: μP would apply twice; remove it.")
    for field, value in fields.items():
        told = any(fnmatch.fnmatchcase(field, p) for p, word in plan.items() if word == "constant")
        if told or field == "output_multiplier" or not _OWN_MULTIPLIER.fullmatch(field):
            continue
        neutral = value == config.head_size if field == "query_pre_attn_scalar" else _is_one(value)
        if not neutral:
            raise ConfigurationError(
                f"{name} carries a multiplier of its own, {field}={value!r}: if it was tuned with the width, μP would "
                f'count the width twice. Add plan={{"{field}": "constant"}} if it is right at base width and stays.'
            )
    for field in EMBEDDING_FIELDS:
        value = fields.get(field)
        if isinstance(value, int) and field not in config.mu_width_fields and field not in plan:
            raise ConfigurationError(
                f"{name} factorises its embedding, {field}={value} in a network of width {config.hidden_size}: it may "
                f'grow or stay. Add plan={{"{field}": "infinite"}} to let it follow the width, or set {field}='
                f"{config.hidden_size}."
            )


def _is_one(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_one(v) for v in value)
    return value is None or value is False or value == 1
