"""μP variants of transformers' models; importing this package registers them with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hf_muscaling.models.base import MuConfigMixin, MuModelMixin, require_mu_model
from hf_muscaling.models.gpt2 import MuGPT2Config, MuGPT2LMHeadModel, MuGPT2Model
from hf_muscaling.models.llama import MuLlamaConfig, MuLlamaForCausalLM, MuLlamaModel
from hf_muscaling.models.pretraining import pretraining_class, pretraining_objective
from hf_muscaling.models.readout import MuReadout

for _config, _model, _causal_lm in (
    (MuGPT2Config, MuGPT2Model, MuGPT2LMHeadModel),
    (MuLlamaConfig, MuLlamaModel, MuLlamaForCausalLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForCausalLM.register(_config, _causal_lm, exist_ok=True)

__all__ = [
    "MuConfigMixin",
    "MuGPT2Config",
    "MuGPT2LMHeadModel",
    "MuGPT2Model",
    "MuLlamaConfig",
    "MuLlamaForCausalLM",
    "MuLlamaModel",
    "MuModelMixin",
    "MuReadout",
    "pretraining_class",
    "pretraining_objective",
    "require_mu_model",
]
