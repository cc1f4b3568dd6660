"""μP GPT-2: `MuGPT2Config`, the language model and the heads that transformers has for it."""

from transformers import (
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

from hf_muscaling.models.base import MuModelMixin
from hf_muscaling.models.config import MuConfigMixin
from hf_muscaling.parametrization import ParameterScale


class MuGPT2Config(MuConfigMixin, GPT2Config):
    """A `GPT2Config` that knows its base width; dropout is 0 unless asked for (FORMULAS of nanoLM: dropout 0).

    `initializer_range` is the σ at base width; the μP fields are those of `MuConfigMixin`.

    >>> MuGPT2Config(n_embd=64, n_head=4).at_width(128).n_head
    8
    """

    model_type = "mu_gpt2"
    mu_width_fields = ("n_embd", "n_head", "n_inner")

    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    attn_pdrop: float | int = 0.0


class _MuGPT2(MuModelMixin):
    config_class = MuGPT2Config
    mu_plan = {
        "*wte.weight": "input",
        "*wpe.weight": "input",
        "*attn.c_attn.weight": "hidden",
        "*crossattention.q_attn.weight": "hidden",
        "*crossattention.c_attn.weight": "hidden",
        "*.c_proj.weight": "hidden",
        "*mlp.c_fc.weight": "hidden",
        "*ln_*.weight": "vector",
        "*ln_*.bias": "vector",
        "*.c_*.bias": "vector",
        "*.q_attn.bias": "vector",
        "lm_head.weight": "readout",
        "multiple_choice_head.summary.weight": "readout",
        "multiple_choice_head.summary.bias": "finite",
        "score.weight": "readout",
        "classifier.weight": "readout",
        "classifier.bias": "finite",
    }
    mu_query = {"*attn.c_attn.weight": (1, 3), "*crossattention.q_attn.weight": (1, 1)}
    mu_branches = ("*.c_proj",)
    mu_last_norm = "transformer.ln_f"

    def stock_init_ratio(self, name: str, scale: ParameterScale) -> float:
        """Return GPT-2's 1/√(2·layers) on the residual projections relative to base depth; 1 elsewhere."""
        return scale.depth**-0.5 if name.endswith("c_proj.weight") else 1.0


class MuGPT2Model(_MuGPT2, GPT2Model):
    """`GPT2Model` under the parametrisation of its config."""


class MuGPT2LMHeadModel(_MuGPT2, GPT2LMHeadModel):
    """`GPT2LMHeadModel` under the parametrisation of its config, tied or untied.

    >>> from hf_muscaling import MuGPT2Config, MuGPT2LMHeadModel
    >>> base = MuGPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_head=2, n_layer=1)
    >>> MuGPT2LMHeadModel(base.at_width(64)).lm_head.multiplier
    0.5
    """

    mu_objective = "causal"
    mu_counts_targets = True


class MuGPT2DoubleHeadsModel(_MuGPT2, GPT2DoubleHeadsModel):
    """`GPT2DoubleHeadsModel` under the parametrisation of its config; the multiple-choice head is a readout too."""


class MuGPT2ForSequenceClassification(_MuGPT2, GPT2ForSequenceClassification):
    """`GPT2ForSequenceClassification` under the parametrisation of its config."""


class MuGPT2ForTokenClassification(_MuGPT2, GPT2ForTokenClassification):
    """`GPT2ForTokenClassification` under the parametrisation of its config."""
