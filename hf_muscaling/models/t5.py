"""μP T5: `MuT5Config`, the encoder-decoder and its heads."""

from typing import Any

from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5ForSequenceClassification, T5Model

from hf_muscaling.models.base import MuModelMixin
from hf_muscaling.models.config import MuConfigMixin
from hf_muscaling.parametrization import ParameterScale


class _UntieableT5Config(T5Config):
    """A `T5Config` that keeps what it is told of the head's tie, which transformers forces back."""

    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None

    def __post_init__(self, **kwargs):
        tied, scaled = self.tie_word_embeddings, self.scale_decoder_outputs
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = tied
        self.scale_decoder_outputs = tied if scaled is None else scaled


class MuT5Config(MuConfigMixin, _UntieableT5Config):
    """A `T5Config` that knows its base width; dropout is 0 unless asked for, as in nanoLM.

    `initializer_factor` scales T5's fan-in initialisation at base width; the μP fields are those of `MuConfigMixin`.

    `tie_word_embeddings=False` unties the head, as in T5 v1.1, and leaves encoder and decoder sharing one embedding;
    transformers' own `T5Config` forces the tie back. An untied head sees the decoder's output without T5's 1/√d.

    >>> MuT5Config(d_model=64, num_heads=4, d_kv=16, d_ff=256).at_width(128).num_heads
    8
    """

    model_type = "mu_t5"
    mu_width_fields = ("d_model", "num_heads", "d_ff")
    mu_depth_fields = ("num_layers", "num_decoder_layers")

    dropout_rate: float | int = 0.0
    decoder_start_token_id: int | None = 0

    def replace(self, **changes: Any):
        """Return a copy with some fields changed; the scaling of the decoder's output follows the tie."""
        if "tie_word_embeddings" in changes:
            changes = {"scale_decoder_outputs": changes["tie_word_embeddings"]} | changes
        return super().replace(**changes)


class _MuT5(MuModelMixin):
    config_class = MuT5Config
    mu_plan = {
        "*shared.weight": "input",
        "*embed_tokens.weight": "input",
        "*relative_attention_bias.weight": "input",
        "*Attention.[qkvo].weight": "hidden",  # EncDecAttention, too
        "*DenseReluDense.w*.weight": "hidden",
        "*layer_norm.weight": "vector",
        "lm_head.weight": "readout",
        "classification_head.dense.weight": "hidden",
        "classification_head.dense.bias": "vector",
        "classification_head.out_proj.weight": "readout",
        "classification_head.out_proj.bias": "finite",
    }
    mu_query = {"*Attention.q.weight": (0, 1)}
    mu_branches = ("*Attention.o", "*DenseReluDense.wo")
    mu_last_norm = "decoder.final_layer_norm"

    def stock_init_ratio(self, name: str, scale: ParameterScale) -> float:
        """Return T5's own fan-in factor: 1/√fan-in for matrices and 1/√d_model for position biases and classifiers."""
        if scale.role == "hidden":
            return scale.fan_in**-0.5
        if name.endswith(("relative_attention_bias.weight", "out_proj.weight")):
            return self.config.width_multiplier**-0.5
        return 1.0

    def mu_readout_multiplier(self, scale: ParameterScale, *, token_logits: bool) -> float:
        """Return m such that, with T5's own 1/√d_model, token logits see τ/(r·√d_base)."""
        multiplier = super().mu_readout_multiplier(scale, token_logits=token_logits)
        if token_logits and self.config.scale_decoder_outputs and not self.config.is_standard:
            multiplier *= self.config.width_multiplier**0.5
        return multiplier

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, Any]:
        """Return the ties: encoder and decoder always share their embedding, the head only if the config says so."""
        if self.config.tie_word_embeddings:
            return super().get_expanded_tied_weights_keys(all_submodels)
        return {k: v for k, v in self._tied_weights_keys.items() if k != "lm_head.weight"}


class MuT5Model(_MuT5, T5Model):
    """`T5Model` under the parametrisation of its config."""


class MuT5ForConditionalGeneration(_MuT5, T5ForConditionalGeneration):
    """`T5ForConditionalGeneration` under the parametrisation of its config, with a tied or an untied head.

    >>> from hf_muscaling import MuT5Config, MuT5ForConditionalGeneration
    >>> base = MuT5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_heads=2, num_layers=1)
    >>> MuT5ForConditionalGeneration(base.at_width(128)).lm_head.multiplier  # 1/√d_model is T5's own
    0.5
    """

    mu_objective = "seq2seq"


class MuT5EncoderModel(_MuT5, T5EncoderModel):
    """`T5EncoderModel` under the parametrisation of its config."""


class MuT5ForSequenceClassification(_MuT5, T5ForSequenceClassification):
    """`T5ForSequenceClassification` under the parametrisation of its config."""

    def __init__(self, config: MuT5Config):
        # No head over the vocabulary is there to untie; the stock `T5Model` within would untie encoder and decoder.
        super().__init__(config if config.tie_word_embeddings else config.replace(tie_word_embeddings=True))
