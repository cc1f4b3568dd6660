"""The model class of a derived μP variant: `MuModelMixin` with roles from shapes instead of a written plan."""

import copy
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

import hf_muscaling.models as named_models
from hf_muscaling.convert.config import CONVERT, DerivedConfigMixin, mu_config_class, refuse_unsure_config
from hf_muscaling.convert.probe import last_norm, stock_init_exponents
from hf_muscaling.convert.roles import Derivation, collapse, derive
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.base import MuModelMixin
from hf_muscaling.models.config import MuConfigMixin, stock_class
from hf_muscaling.models.multipliers import MuReadout
from hf_muscaling.models.pretraining import Objective
from hf_muscaling.parametrization import ParameterScale

AUTO_CLASSES = (
    "AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification", "AutoModelForTokenClassification",
)  # fmt: skip
_QUERY_PROJECTIONS = ("q_proj", "query", "query_proj", "q_lin", "q")
_derivations: dict[tuple[type, str], Derivation] = {}


class DerivedModelMixin(MuModelMixin):
    """A stock model class whose roles are derived from its shapes at base width and at twice the base width."""

    mu_additions: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        if self.mu_additions:  # the config carries the plan, so that a saved model is read back as it was
            config = copy.deepcopy(config)
            config.mu_plan = {**(config.mu_plan or {}), **self.mu_additions}
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers reads the source of the module a class lives in; ours holds no attention (private, tested)
        return stock_class(cls)._can_set_attn_implementation()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return stock_class(cls)._can_set_experts_implementation()

    @property
    def mu_derivation(self) -> Derivation:
        """Return what the shapes say. Raises ConfigurationError where they do not settle a role."""
        if "_mu_derivation" not in self.__dict__:
            self._mu_derivation = derivation(stock_class(type(self)), self.config)
        return self._mu_derivation

    def post_init(self) -> None:
        """Refuse what is not sure, put every multiplier in place, then let transformers initialise and tie as usual."""
        refuse_unsure_config(self.config)
        self._hold_multipliers_at_base_width()
        self._require_fixed_heads()
        self._require_query_projections()
        super().post_init()

    def mu_role(self, name: str) -> str:
        """Return the role that the shapes, or the user's plan, give to a parameter."""
        return self.mu_derivation.places[name].role

    def stock_init_ratio(self, name: str, scale: ParameterScale) -> float:
        """Return std here / std at base width of the stock initialisation, measured on narrow models of the design."""
        if self.config.is_standard or self.config.is_base:
            return 1.0
        if "_mu_stock_exponents" not in self.__dict__:
            self._mu_stock_exponents = stock_init_exponents(stock_class(type(self)), self.config)
        exponent = self._mu_stock_exponents.get(collapse(name), 0.0)
        r = scale.fan_in if scale.role in ("hidden", "readout", "router") else self.config.width_multiplier
        return r**exponent

    @property
    def mu_query(self) -> dict[str, tuple[int, int]]:  # type: ignore[override]
        """Return where the query projections are: linear layers of a name that says so."""
        names = [n for n, m in self.named_modules() if n.rpartition(".")[2] in _QUERY_PROJECTIONS]
        return {f"{collapse(n)}.weight": (0, 1) for n in names}

    def _scale_of(self, name: str, shape: torch.Size, base: torch.Size) -> ParameterScale:
        place = self.mu_derivation.places[name]
        fan_in, fan_out = (1.0 if d is None else shape[d] / base[d] for d in (place.fan_in, place.fan_out))
        if not place.layout_known and fan_in != fan_out:
            raise ConfigurationError(
                f"{type(self).__name__}: {name} {tuple(shape)} grows by {fan_out:g} and {fan_in:g}, and its module "
                "does not tell which dimension is the fan-in; scale every infinite dimension alike (config.at_width)."
            )
        return ParameterScale(place.role, fan_in, fan_out)

    def _install_readouts(self) -> None:
        head = self.get_output_embeddings()
        for name, base_in in self.mu_derivation.readouts.items():
            module = self.get_submodule(name)
            scale = ParameterScale("readout", module.in_features / base_in)
            multiplier = self.mu_readout_multiplier(scale, token_logits=module is head)
            self.set_submodule(name, MuReadout.from_linear(module, multiplier))

    def _hold_multipliers_at_base_width(self) -> None:
        if self.config.is_standard:
            return
        for name, value in self.mu_derivation.floats.items():
            owner, _, attribute = name.rpartition(".")
            module = self.get_submodule(owner)
            setattr(module, attribute, value)
            twin = getattr(module, attribute.removeprefix("scalar_"), None)
            if isinstance(twin, torch.Tensor) and not twin.is_meta:  # Gemma keeps a copy of the float in a buffer
                with torch.no_grad():
                    twin.fill_(value)

    @property
    def mu_last_norm(self) -> str | None:
        """Return the norm that a tied readout's multiplier folds into; None if the readout does not read one."""
        return last_norm(type(self), self.config)

    def require_exportable(self) -> None:
        """Refuse to fold a multiplier that the stock class derives from the width and μP holds at its base value."""
        held = self.mu_derivation.floats
        if held and not self.config.is_standard and not self.config.is_base:
            raise ConfigurationError(
                f"{type(self).__name__} holds {next(iter(held))} at its value at base width, which the stock class "
                "would derive from the width again: this architecture cannot be exported away from base width."
            )

    def _require_fixed_heads(self) -> None:
        fixed = self.mu_derivation.fixed_heads
        if fixed and self.config.head_size != self.config.base_head_size:
            raise ConfigurationError(
                f"{type(self).__name__}: {fixed[0]} carries no `scaling`, so the head size must stay "
                f"{self.config.base_head_size} as at base width, got {self.config.head_size}; use config.at_width."
            )

    def _require_query_projections(self) -> None:
        if self.config.zero_query and not self.mu_query:
            raise ConfigurationError(
                f"{type(self).__name__}: zero_query=True, but no linear layer is named {', '.join(_QUERY_PROJECTIONS)} "
                "(the query may be fused with key and value); leave zero_query off."
            )


def derivation(stock_model: type, config: Any) -> Derivation:
    """Return what the shapes of a stock model class say about a μP config (computed once a design)."""
    base = config.base_config().replace(parametrization="mup", output_multiplier=1.0)
    key = (stock_model, json.dumps(base.to_dict(), sort_keys=True, default=str))
    if key not in _derivations:
        wide = base.at_width(2 * base.hidden_size)
        _derivations[key] = derive(stock_model, base.to_stock_config(), wide.to_stock_config(), 2, config.mu_plan or {})
    return _derivations[key]


def mu_variant(model_class: Any, plan: Mapping[str, str] | None = None) -> Any:
    """Return the μP variant of a transformers model class: `Mu` + its name, a subclass of it.

    A class written by hand (`MuLlamaForCausalLM`, …) is returned where there is one. Otherwise the subclass derives
    each parameter's role from the shapes at base width and at another width on the `meta` device (Tensor Programs V,
    Appendix H, done by name), takes the readout from `get_output_embeddings()` and the attention from `scaling`.

    `plan` adds what shapes do not tell: a glob over parameter names → a role (`input`, `hidden`, `readout`, `router`,
    `vector`, `finite`); a config field → `infinite` (follows the width) or `constant`; a glob over attention modules
    without `scaling` → `fixed_head`; a glob over `module.attribute` → `constant`. The config keeps it.

    >>> from transformers import MistralConfig, MistralForCausalLM
    >>> from hf_muscaling import mu_variant
    >>> MuMistral = mu_variant(MistralForCausalLM)
    >>> stock = MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                       num_key_value_heads=2, num_hidden_layers=1)
    >>> base = MuMistral.config_class.from_stock(stock)
    >>> MuMistral(base.at_width(128)).lm_head.multiplier
    0.25

    Raises ConfigurationError for a class that is no text model of transformers. A design that the derivation is not
    sure of is refused when a model is built, with every doubtful parameter and the line to add.
    """
    variant: Any = model_class
    if not isinstance(model_class, type):
        name = type(model_class).__name__
        raise ConfigurationError(f"mu_variant takes a model class of transformers, got {name}; see mu_config.")
    if not issubclass(variant, MuModelMixin):
        variant = _variant(model_class)
    if plan and not issubclass(variant, DerivedModelMixin):
        raise ConfigurationError(f"{variant.__name__} has a plan of its own (mu_plan); it takes no additions.")
    if not plan:
        return variant
    merged = {**variant.mu_additions, **plan}
    return type(
        variant.__name__, (variant,), {"mu_additions": merged, "__module__": CONVERT, "__doc__": variant.__doc__}
    )


@cache
def _variant(model_class: Any) -> Any:
    name = getattr(model_class, "__name__", repr(model_class))
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ConfigurationError(f"mu_variant takes a model class of transformers, got {name}.")
    written = getattr(named_models, f"Mu{name}", None)
    if written is not None:
        return written
    if not model_class.__module__.startswith("transformers.") or model_class.config_class is None:
        raise ConfigurationError(
            f"{name} is not a model class of transformers with a config class of its own; derive from one of those."
        )
    if model_class.main_input_name != "input_ids":
        raise ConfigurationError(f"{name} reads {model_class.main_input_name}: only text models can be converted.")
    namespace = {
        "config_class": mu_config_class(model_class.config_class),
        "mu_objective": _objective_of(model_class),
        "__module__": CONVERT,
        "__doc__": f"`{name}` under the parametrisation of its config, derived by `hf_muscaling.mu_variant`.",
    }
    return type(f"Mu{name}", (DerivedModelMixin, model_class), namespace)


def _objective_of(model_class: Any) -> Objective | None:
    """Return what a stock class is pretrained for: the Auto class that would build it says so."""
    autos: dict[Objective, Any] = {
        "seq2seq": AutoModelForSeq2SeqLM, "masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM,
    }  # fmt: skip
    named = (o for o, auto in autos.items() if stock_model_class(auto, model_class.config_class) is model_class)
    return next(named, None)


def mu_config(
    config: PreTrainedConfig, base_width: int | None = None, *, plan: Mapping[str, str] | None = None, **mu: Any
):
    """Return the μP config of any stock config, and make the Auto classes know it.

    `base_width` is the width at which hyperparameters were tuned; without it the config becomes the base itself. `mu`
    are the μP fields (`output_multiplier`, `zero_query`, …). The result serves `train_series`, `coordinate_check` and
    transformers' Auto classes like a config written by hand.

    >>> from transformers import MistralConfig
    >>> from hf_muscaling import mu_config
    >>> config = mu_config(MistralConfig(), base_width=512)
    >>> config.width_multiplier, config.mup_base["intermediate_size"]
    (8.0, 1792)

    Raises ConfigurationError if the config already carries a parametrisation or a design that needs a `plan`.
    """
    if isinstance(config, MuConfigMixin):
        raise ConfigurationError(f"The {type(config).__name__} is a μP config already; use config.at_width(width).")
    cls = config_variant(type(config))
    if not issubclass(cls, DerivedConfigMixin):
        if plan:
            raise ConfigurationError(f"{cls.__name__} belongs to a written plan; it takes no additions.")
        return cls.from_stock(config, base_width, **mu)
    result = cls.from_stock(config, base_width, mu_plan=dict(plan) if plan else None, **mu)
    refuse_unsure_config(result)
    return result


def config_variant(stock: Any) -> Any:
    """Return the μP config class of a stock config class, known to every Auto class that knows the stock one."""
    return _config_variant(stock)


@cache
def _config_variant(stock: Any) -> Any:
    written = getattr(named_models, f"Mu{stock.__name__}", None)
    if written is not None:
        return written
    cls = mu_config_class(stock)
    AutoConfig.register(cls.model_type, cls, exist_ok=True)
    for name in AUTO_CLASSES:
        auto = getattr(transformers, name)
        model = stock_model_class(auto, stock)
        if model is not None and model.config_class is stock and model.main_input_name == "input_ids":
            auto.register(cls, mu_variant(model), exist_ok=True)
    return cls


def stock_model_class(auto: Any, config_class: type[PreTrainedConfig]) -> Any:
    """Return the model class that an Auto class builds from a config class, None if there is none."""
    found = auto._model_mapping.get(config_class, None)  # private: there is no public way to ask an Auto class
    return found[0] if isinstance(found, tuple) else found
