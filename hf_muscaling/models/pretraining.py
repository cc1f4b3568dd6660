"""Which Auto class pretrains a config: its objective follows from its architecture."""

from typing import Any, Literal

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedConfig

from hf_muscaling.errors import ConfigurationError

Objective = Literal["seq2seq", "masked", "causal"]

# In this order: transformers also lists BERT among the causal models (as a decoder) and BART among the masked ones.
_CLASSES: dict[Objective, Any] = {
    "seq2seq": AutoModelForSeq2SeqLM,
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
}


def pretraining_objective(config: PreTrainedConfig) -> Objective:
    """Return "seq2seq", "masked" or "causal", the language-modelling objective of a config's architecture.

    >>> from hf_muscaling import MuLlamaConfig
    >>> pretraining_objective(MuLlamaConfig())
    'causal'

    Raises ConfigurationError if transformers knows no language model of that config.
    """
    for objective, auto_class in _CLASSES.items():
        if type(config) in auto_class._model_mapping:  # noqa: SLF001  no public way to ask an Auto class
            return objective
    raise ConfigurationError(
        f"No language model is registered for {type(config).__name__}: give the config of a causal, masked or "
        "sequence-to-sequence language model."
    )


def pretraining_class(config: PreTrainedConfig) -> Any:
    """Return the Auto class that builds the pretraining model of a config: `pretraining_class(c).from_config(c)`."""
    return _CLASSES[pretraining_objective(config)]
