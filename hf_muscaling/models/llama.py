"""μP Llama, with grouped-query attention: `MuLlamaConfig`, the language model and the classification heads."""

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

from hf_muscaling.models.base import MuModelMixin
from hf_muscaling.models.config import MuConfigMixin


class MuLlamaConfig(MuConfigMixin, LlamaConfig):
    """A `LlamaConfig` that knows its base width.

    `initializer_range` is the σ at base width; the μP fields are those of `MuConfigMixin`.

    >>> MuLlamaConfig(hidden_size=64, num_attention_heads=4, intermediate_size=256).at_width(512).num_attention_heads
    32
    """

    model_type = "mu_llama"
    mu_width_fields = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")


class _MuLlama(MuModelMixin):
    config_class = MuLlamaConfig
    mu_plan = {
        "*embed_tokens.weight": "input",
        "*self_attn.*_proj.weight": "hidden",
        "*mlp.*_proj.weight": "hidden",
        "*norm.weight": "vector",
        "*_proj.bias": "vector",
        "lm_head.weight": "readout",
        "score.weight": "readout",
        "score.bias": "finite",
    }
    mu_query = {"*self_attn.q_proj.weight": (0, 1)}
    mu_branches = ("*self_attn.o_proj", "*mlp.down_proj")
    mu_last_norm = "model.norm"

    def to_granite(self):
        """Return the same model as Granite, the multipliers in its config; see `hf_muscaling.export.to_granite`."""
        from hf_muscaling.export import to_granite

        return to_granite(self)


class MuLlamaModel(_MuLlama, LlamaModel):
    """`LlamaModel` under the parametrisation of its config."""


class MuLlamaForCausalLM(_MuLlama, LlamaForCausalLM):
    """`LlamaForCausalLM` under the parametrisation of its config, tied or untied.

    >>> from hf_muscaling import MuLlamaConfig, MuLlamaForCausalLM
    >>> base = MuLlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                      num_hidden_layers=1)
    >>> MuLlamaForCausalLM(base.at_width(128)).lm_head.multiplier
    0.25
    """

    mu_objective = "causal"
    mu_counts_targets = True


class MuLlamaForSequenceClassification(_MuLlama, LlamaForSequenceClassification):
    """`LlamaForSequenceClassification` under the parametrisation of its config."""


class MuLlamaForTokenClassification(_MuLlama, LlamaForTokenClassification):
    """`LlamaForTokenClassification` under the parametrisation of its config."""
