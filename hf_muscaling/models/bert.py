"""μP BERT: `MuBertConfig`, the masked language model, the pretraining pair of heads and the classifiers."""

from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from hf_muscaling.models.base import MuModelMixin
from hf_muscaling.models.config import MuConfigMixin


class MuBertConfig(MuConfigMixin, BertConfig):
    """A `BertConfig` that knows its base width; dropout is 0 unless asked for, as in nanoLM.

    `initializer_range` is the σ at base width; the μP fields are those of `MuConfigMixin`.

    >>> MuBertConfig(hidden_size=64, num_attention_heads=4, intermediate_size=256).at_width(128).intermediate_size
    512
    """

    model_type = "mu_bert"
    mu_width_fields = ("hidden_size", "num_attention_heads", "intermediate_size")

    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0


class _MuBert(MuModelMixin):
    config_class = MuBertConfig
    mu_plan = {
        "*embeddings.word_embeddings.weight": "input",
        "*embeddings.position_embeddings.weight": "input",
        "*embeddings.token_type_embeddings.weight": "input",
        "*attention.self.*.weight": "hidden",
        "*.dense.weight": "hidden",  # attention output, FFN, pooler and the transform before the decoder
        "*LayerNorm.weight": "vector",
        "*LayerNorm.bias": "vector",
        "*attention.self.*.bias": "vector",
        "*.dense.bias": "vector",
        "cls.predictions.decoder.weight": "readout",
        "cls.predictions.decoder.bias": "finite",
        "cls.predictions.bias": "finite",
        "cls.seq_relationship.weight": "readout",
        "cls.seq_relationship.bias": "finite",
        "classifier.weight": "readout",
        "classifier.bias": "finite",
    }
    mu_query = {"*.self.query.weight": (0, 1)}
    mu_branches = ("*.layer.*.output.dense",)
    mu_last_norm = "cls.predictions.transform.LayerNorm"

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return the ties; the decoder's bias is one parameter also where its weight is untied.

        The stock class then leaves `cls.predictions.bias` a parameter that nothing reads, which DDP refuses to train.
        """
        if self.config.tie_word_embeddings:
            return super().get_expanded_tied_weights_keys(all_submodels)
        return {k: v for k, v in (self._tied_weights_keys or {}).items() if k.endswith(".bias")}


class MuBertModel(_MuBert, BertModel):
    """`BertModel` under the parametrisation of its config."""


class MuBertForMaskedLM(_MuBert, BertForMaskedLM):
    """`BertForMaskedLM` under the parametrisation of its config, tied (weight and bias) or untied.

    >>> from hf_muscaling import MuBertConfig, MuBertForMaskedLM
    >>> base = MuBertConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2,
    ...                     num_hidden_layers=1, max_position_embeddings=16)
    >>> MuBertForMaskedLM(base.at_width(64)).get_output_embeddings().multiplier
    0.5
    """

    mu_objective = "masked"


class MuBertForPreTraining(_MuBert, BertForPreTraining):
    """`BertForPreTraining` under the parametrisation of its config; both heads are readouts."""


class MuBertForSequenceClassification(_MuBert, BertForSequenceClassification):
    """`BertForSequenceClassification` under the parametrisation of its config."""


class MuBertForTokenClassification(_MuBert, BertForTokenClassification):
    """`BertForTokenClassification` under the parametrisation of its config."""
