"""μP variants of transformers' models; importing this package registers them with the Auto classes."""

from typing import Any

import transformers
from transformers import AutoConfig

from hf_muscaling.models.base import MuModelMixin, require_mu_model
from hf_muscaling.models.bert import (
    MuBertConfig,
    MuBertForMaskedLM,
    MuBertForPreTraining,
    MuBertForSequenceClassification,
    MuBertForTokenClassification,
    MuBertModel,
)
from hf_muscaling.models.config import MuConfigMixin
from hf_muscaling.models.gpt2 import (
    MuGPT2Config,
    MuGPT2DoubleHeadsModel,
    MuGPT2ForSequenceClassification,
    MuGPT2ForTokenClassification,
    MuGPT2LMHeadModel,
    MuGPT2Model,
)
from hf_muscaling.models.llama import (
    MuLlamaConfig,
    MuLlamaForCausalLM,
    MuLlamaForSequenceClassification,
    MuLlamaForTokenClassification,
    MuLlamaModel,
)
from hf_muscaling.models.multipliers import MuBranch, MuBranchConv1D, MuReadout
from hf_muscaling.models.pretraining import pretraining_class, pretraining_objective
from hf_muscaling.models.t5 import (
    MuT5Config,
    MuT5EncoderModel,
    MuT5ForConditionalGeneration,
    MuT5ForSequenceClassification,
    MuT5Model,
)

MU_MODELS: dict[Any, dict[str, Any]] = {
    MuGPT2Config: {
        "AutoModel": MuGPT2Model,
        "AutoModelForCausalLM": MuGPT2LMHeadModel,
        "AutoModelForSequenceClassification": MuGPT2ForSequenceClassification,
        "AutoModelForTokenClassification": MuGPT2ForTokenClassification,
    },
    MuLlamaConfig: {
        "AutoModel": MuLlamaModel,
        "AutoModelForCausalLM": MuLlamaForCausalLM,
        "AutoModelForSequenceClassification": MuLlamaForSequenceClassification,
        "AutoModelForTokenClassification": MuLlamaForTokenClassification,
    },
    MuBertConfig: {
        "AutoModel": MuBertModel,
        "AutoModelForMaskedLM": MuBertForMaskedLM,
        "AutoModelForPreTraining": MuBertForPreTraining,
        "AutoModelForSequenceClassification": MuBertForSequenceClassification,
        "AutoModelForTokenClassification": MuBertForTokenClassification,
    },
    MuT5Config: {
        "AutoModel": MuT5Model,
        "AutoModelForSeq2SeqLM": MuT5ForConditionalGeneration,
        "AutoModelForTextEncoding": MuT5EncoderModel,
        "AutoModelForSequenceClassification": MuT5ForSequenceClassification,
    },
}
"""Each config's model class under the Auto class that builds it."""

for _config, _models in MU_MODELS.items():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    for _auto, _model in _models.items():
        getattr(transformers, _auto).register(_config, _model, exist_ok=True)

__all__ = [
    "MU_MODELS",
    "MuBertConfig",
    "MuBertForMaskedLM",
    "MuBertForPreTraining",
    "MuBertForSequenceClassification",
    "MuBertForTokenClassification",
    "MuBertModel",
    "MuBranch",
    "MuBranchConv1D",
    "MuConfigMixin",
    "MuGPT2Config",
    "MuGPT2DoubleHeadsModel",
    "MuGPT2ForSequenceClassification",
    "MuGPT2ForTokenClassification",
    "MuGPT2LMHeadModel",
    "MuGPT2Model",
    "MuLlamaConfig",
    "MuLlamaForCausalLM",
    "MuLlamaForSequenceClassification",
    "MuLlamaForTokenClassification",
    "MuLlamaModel",
    "MuModelMixin",
    "MuReadout",
    "MuT5Config",
    "MuT5EncoderModel",
    "MuT5ForConditionalGeneration",
    "MuT5ForSequenceClassification",
    "MuT5Model",
    "pretraining_class",
    "pretraining_objective",
    "require_mu_model",
]
