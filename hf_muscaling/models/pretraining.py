"""Which Auto class pretrains a config: its objective follows from its architecture."""

from typing import Any, Literal

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
)

from hf_muscaling.errors import ConfigurationError

Objective = Literal["seq2seq", "masked", "causal"]

# In this order: transformers also lists BERT among the causal models (as a decoder) and BART among the masked ones.
_CLASSES: dict[Objective, tuple[Any, Any]] = {
    "seq2seq": (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoModelForSeq2SeqLM),
    "masked": (MODEL_FOR_MASKED_LM_MAPPING, AutoModelForMaskedLM),
    "causal": (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
}


def pretraining_objective(config: PreTrainedConfig) -> Objective:
    """Return "seq2seq", "masked" or "causal", the language-modelling objective of a config's architecture.

    >>> from hf_muscaling import MuLlamaConfig
    >>> pretraining_objective(MuLlamaConfig())
    'causal'

    Raises ConfigurationError if transformers knows no language model of that config.
    """
    for objective, (mapping, _) in _CLASSES.items():
        if type(config) in mapping:
            return objective
    raise ConfigurationError(
        f"No language model is registered for {type(config).__name__}: give the config of a causal, masked or "
        "sequence-to-sequence language model."
    )


def pretraining_class(config: PreTrainedConfig) -> Any:
    """Return the Auto class that builds the pretraining model of a config: `pretraining_class(c).from_config(c)`."""
    return _CLASSES[pretraining_objective(config)][1]
