"""Auto classes that build or load the μP variant of any stock config."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
)

from hf_muscaling.convert.config import DerivedConfigMixin
from hf_muscaling.convert.model import config_variant, mu_config, stock_model_class
from hf_muscaling.convert.probe import verify_variant
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.config import MuConfigMixin

_PREFIX = "mu_"


class _MuAutoModel:
    """Build the μP variant of a stock config, or load one that was saved."""

    auto_class: ClassVar[Any]

    def __init__(self):
        raise ConfigurationError(f"Use {type(self).__name__}.from_config or .from_pretrained.")

    @classmethod
    def from_config(
        cls,
        config: PreTrainedConfig,
        base_width: int | None = None,
        *,
        plan: Mapping[str, str] | None = None,
        verify: bool = True,
        dtype: Any = None,
        **mu_settings: Any,
    ) -> Any:
        """Return the model of a stock config, freshly initialised under μP from `base_width`, by default its own.

        `plan` is `mu_variant`'s. `verify` first proves on narrow models of the design that the variant equals the stock
        model at base width and that its multipliers are used (`verify_variant`). `mu_settings` are the μP fields of the
        config. A μP config is taken as it is.

        Raises ConfigurationError if the design cannot be converted with certainty.
        """
        if not isinstance(config, MuConfigMixin):
            config = mu_config(config, base_width, plan=plan, **mu_settings)
        elif base_width is not None or plan or mu_settings:
            raise ConfigurationError(
                f"The {type(config).__name__} is a μP config already and takes no further settings."
            )
        model_class = stock_model_class(cls.auto_class, type(config))
        if model_class is None:
            raise ConfigurationError(
                f"{type(config).__name__} has no {cls.__name__.removeprefix('Mu')} in transformers."
            )
        if verify and isinstance(config, DerivedConfigMixin):
            verify_variant(model_class, config)
        return cls.auto_class.from_config(config, **({} if dtype is None else {"dtype": dtype}))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Return a saved μP model: the config names its stock architecture, whose variant is derived again.

        Takes the keywords of transformers' `from_pretrained`; code from the folder is never run. Raises
        ConfigurationError if the folder holds no μP model.
        """
        known = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        options = {k: kwargs[k] for k in known if k in kwargs}
        fields, _ = PreTrainedConfig.get_config_dict(folder, **options)
        register_model_type(fields.get("model_type"), str(folder))
        return cls.auto_class.from_pretrained(folder, trust_remote_code=False, **kwargs)


def register_saved(folder: str | os.PathLike[str], **options: Any) -> None:
    """Make the Auto classes know the derived variant that a folder or repository holds, if it holds one.

    Raises ConfigurationError for a `mu_…` model of an architecture that this transformers lacks; leaves others alone.
    """
    fields, _ = PreTrainedConfig.get_config_dict(folder, **options)
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if isinstance(model_type, str) and model_type.startswith(_PREFIX):
        register_model_type(model_type, str(folder))


def register_model_type(model_type: Any, where: str) -> None:
    """Make the Auto classes know a `mu_…` model type. Raises ConfigurationError for any other."""
    if not isinstance(model_type, str) or not model_type.startswith(_PREFIX):
        raise ConfigurationError(
            f"{where} holds a {model_type!r} model, not a μP one: weights trained under the standard "
            "parametrisation are not μP's. Build a fresh variant with from_config(config, base_width=…)."
        )
    stock = model_type.removeprefix(_PREFIX)
    if stock not in CONFIG_MAPPING:
        raise ConfigurationError(
            f"{where} holds a {model_type!r} model, but this version of transformers has no {stock!r}; install a newer "
            "one."
        )
    config_class = CONFIG_MAPPING[stock]
    if isinstance(config_class, type) and not issubclass(config_class, MuConfigMixin):
        config_variant(config_class)


class MuAutoModelForCausalLM(_MuAutoModel):
    """`AutoModelForCausalLM` of μP variants: any causal language model of transformers.

    >>> from transformers import Qwen2Config
    >>> from hf_muscaling import MuAutoModelForCausalLM
    >>> config = Qwen2Config(vocab_size=64, hidden_size=64, intermediate_size=128, num_attention_heads=4,
    ...                      num_key_value_heads=2, num_hidden_layers=1)
    >>> model = MuAutoModelForCausalLM.from_config(config, base_width=32)
    >>> type(model).__name__, model.lm_head.multiplier, model.mu_table()["model.norm.weight"].role
    ('MuQwen2ForCausalLM', 0.5, 'vector')
    """

    auto_class = AutoModelForCausalLM


class MuAutoModelForMaskedLM(_MuAutoModel):
    """`AutoModelForMaskedLM` of μP variants: any masked language model of transformers."""

    auto_class = AutoModelForMaskedLM


class MuAutoModelForSeq2SeqLM(_MuAutoModel):
    """`AutoModelForSeq2SeqLM` of μP variants: any encoder-decoder language model of transformers."""

    auto_class = AutoModelForSeq2SeqLM
