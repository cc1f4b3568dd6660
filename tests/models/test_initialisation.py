"""Standard deviations under the table."""

import copy
import math

import pytest
import torch

from hf_muscaling.errors import ConfigurationError
from tests.models.helpers import MATRIX, expected_std, head, logits


class TestInitialisation:
    """Standard deviations under the table."""

    def test_std_of_every_matrix_at_four_times_the_width(self, architecture, tied):
        config = architecture.base(width=64, heads=4, vocabulary=256, tie_word_embeddings=tied, initializer_range=0.05)
        model = architecture.model(config.at_width(256))
        checked = 0
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                values = parameter[1:] if "word_embeddings" in name else parameter  # BERT's row of padding is zero
                error = values.std().item() / expected_std(model, name) - 1
                assert abs(error) < 5 / math.sqrt(2 * values.numel()), (name, error)  # five standard errors
                checked += 1
            else:
                assert {round(v, 6) for v in parameter.unique().tolist()} <= {
                    0.0,
                    1.0,
                    0.05,
                }  # T5's norms start at its factor
        assert checked == {"gpt2": 10, "llama": 15, "bert": 16, "t5": 35}[architecture.name] + (not tied)

    def test_std_follows_each_parameters_own_fan_in(self, llama):
        base = llama.base(width=64, heads=4, layers=1)
        model = llama.model(base.at_width(256).replace(intermediate_size=176 * 16))
        layer = model.model.layers[0]
        assert layer.mlp.down_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
        assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.02)
        assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.02)

    @pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
    def test_stock_initialisation_would_fail_that(self, request, name):
        architecture = request.getfixturevalue(name)
        config = architecture.base(width=64, heads=4).at_width(256)
        stock = architecture.stock(config)
        name = MATRIX[architecture.name]
        assert stock.state_dict()[name].std().item() == pytest.approx(0.02, rel=0.05)
        assert expected_std(architecture.model(config), name) == pytest.approx(0.01)

    def test_twice_changes_nothing(self, architecture, tied):
        config = architecture.base(tie_word_embeddings=tied, zero_query=True).at_width(64)
        model = architecture.model(config)
        before = copy.deepcopy(model.state_dict())
        model.initialize_weights()
        model.init_weights()
        copy.deepcopy(model).initialize_weights()
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    def test_zero_query(self, architecture):
        model = architecture.model(architecture.base(zero_query=True).at_width(64))
        other = architecture.model(architecture.base().at_width(64))
        queries = {
            n
            for n, _ in model.named_parameters()
            if n.endswith(("q_proj.weight", "self.query.weight", "Attention.q.weight"))
        }
        if architecture.name == "gpt2":
            for block, plain in zip(model.transformer.h, other.transformer.h, strict=True):
                assert not block.attn.c_attn.weight[:, :64].any()
                assert torch.equal(block.attn.c_attn.weight[:, 64:], plain.attn.c_attn.weight[:, 64:])
            return
        assert len(queries) == {"llama": 2, "bert": 2, "t5": 6}[architecture.name]
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, torch.zeros_like(parameter) if name in queries else other.get_parameter(name))

    def test_zero_readout(self, architecture, tokens):
        config = architecture.base(zero_readout=True, tie_word_embeddings=False).at_width(64)
        model = architecture.model(config)
        assert not head(model).weight.any() and model.get_input_embeddings().weight.any()
        assert not logits(model, tokens).any()

    def test_the_padding_row_of_bert_stays_zero(self, bert):
        embedding = bert.model(bert.base(pad_token_id=3).at_width(64)).get_input_embeddings().weight
        assert not embedding[3].any() and embedding[0].any()

    def test_the_stock_fan_in_of_t5_is_not_counted_twice(self, t5):
        """std·√fan-in of every T5 matrix is the same at every width; halving it again would be seen."""
        base, wide = (t5.model(t5.base(width=64, heads=4, vocabulary=8).at_width(w)) for w in (64, 256))
        for name, parameter in wide.named_parameters():
            if wide.mu_table()[name].role == "hidden":
                ratio = (parameter.std() / base.get_parameter(name).std()).item()
                assert ratio == pytest.approx(0.5, rel=0.06), name
        bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        assert wide.get_parameter(bias).std().item() == pytest.approx(64**-0.5, rel=0.3)  # stock: 256**-0.5

    def test_zero_readout_is_refused_with_a_tied_head(self, architecture):
        with pytest.raises(ConfigurationError, match="zero_readout=True with tie_word_embeddings=True .* untie"):
            architecture.base(zero_readout=True, tie_word_embeddings=True)
