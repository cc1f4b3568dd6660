"""A μP variant of any text model of transformers, derived from its shapes and checked; in doubt it refuses.

Derived classes live in this package under their names: `hf_muscaling.convert.MuMistralForCausalLM`.
"""

from typing import Any

import transformers

from hf_muscaling.convert.auto import MuAutoModelForCausalLM, MuAutoModelForMaskedLM, MuAutoModelForSeq2SeqLM
from hf_muscaling.convert.model import config_variant, mu_config, mu_variant
from hf_muscaling.convert.probe import verify_variant

__all__ = [
    "MuAutoModelForCausalLM",
    "MuAutoModelForMaskedLM",
    "MuAutoModelForSeq2SeqLM",
    "config_variant",
    "mu_config",
    "mu_variant",
    "verify_variant",
]


def __getattr__(name: str) -> Any:
    stock = getattr(transformers, name.removeprefix("Mu"), None) if name.startswith("Mu") else None
    if isinstance(stock, type) and issubclass(stock, transformers.PreTrainedConfig):
        return config_variant(stock)
    if isinstance(stock, type) and issubclass(stock, transformers.PreTrainedModel):
        return mu_variant(stock)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
