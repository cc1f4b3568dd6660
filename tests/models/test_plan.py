"""Which parameter has which role, and its ratios to base width."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_muscaling import MuLlamaForCausalLM
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models.base import parameter_fans
from tests.models.helpers import derived_role


class TestPlan:
    """Which parameter has which role."""

    def test_every_parameter_matches_exactly_one_pattern(self, architecture, tied):
        model = architecture.model(architecture.base(tie_word_embeddings=tied).at_width(64))
        assert set(model.mu_table()) == {name for name, _ in model.named_parameters()}

    def test_biases_and_qkv_bias_have_a_role(self, llama):
        model = llama.model(llama.base(attention_bias=True, mlp_bias=True).at_width(64))
        roles = {s.role for n, s in model.mu_table().items() if n.endswith("bias")}
        assert roles == {"vector"}

    def test_t5_cross_attention_and_position_biases(self, t5):
        table = t5.model(t5.base().at_width(64)).mu_table()
        cross = {s.role for n, s in table.items() if "EncDecAttention" in n}
        assert cross == {"hidden"} and sum("EncDecAttention" in n for n in table) == 8
        assert {s.role for n, s in table.items() if "relative" in n} == {"input"}

    def test_gpt2_cross_attention_has_a_role(self, gpt2):
        model = gpt2.model(gpt2.base(add_cross_attention=True).at_width(64))
        cross = {n: s.role for n, s in model.mu_table().items() if "crossattention" in n and n.endswith("weight")}
        assert len(cross) == 6 and set(cross.values()) == {"hidden"}

    def test_an_unknown_parameter_is_named(self, architecture):
        model = architecture.model(architecture.base())
        with pytest.raises(ConfigurationError, match=r"extra\.gain .* no counterpart"):
            model.extra = nn.Module()
            model.extra.gain = nn.Parameter(torch.ones(3))
            model.mu_table()
        with pytest.raises(
            ConfigurationError, match=r"parameter extra\.gain matches 0 patterns .* hf_muscaling\.models"
        ):
            model.mu_role("extra.gain")

    def test_a_parameter_with_two_roles_is_named(self, llama):
        class Ambiguous(MuLlamaForCausalLM):
            mu_plan = MuLlamaForCausalLM.mu_plan | {"*q_proj.weight": "hidden"}

        with pytest.raises(ConfigurationError, match=r"q_proj\.weight matches 2 patterns"):
            Ambiguous(llama.base())

    def test_roles_equal_those_derived_from_base_and_delta_shapes(self, architecture, tied):
        base = architecture.base(tie_word_embeddings=tied, layers=1)
        narrow, wide = architecture.model(base), architecture.model(base.at_width(64))
        shapes = {n: p.shape for n, p in narrow.named_parameters()}
        derived = {n: derived_role(n, wide, shapes[n], p.shape) for n, p in wide.named_parameters()}
        table = wide.mu_table()
        assert derived == {n: s.role for n, s in table.items()}
        assert {"input", "hidden", "vector"} <= set(derived.values())
        assert ("readout" in derived.values()) is not tied
        assert ("finite" in derived.values()) is (architecture.name == "bert")  # the bias over the vocabulary

    def test_ratios_are_per_parameter(self, llama):
        """The fan-in of down_proj is the FFN size, of o_proj heads × head size: neither need follow the hidden size."""
        base = llama.base(layers=1)
        config = base.at_width(64).replace(intermediate_size=88 * 5, num_attention_heads=6, num_key_value_heads=6)
        table = llama.model(config).mu_table()
        ratio = {n.split(".")[-2]: (s.fan_in, s.fan_out) for n, s in table.items() if "_proj" in n}
        assert ratio["down_proj"] == (5.0, 2.0)
        assert ratio["gate_proj"] == ratio["up_proj"] == (2.0, 5.0)
        assert ratio["o_proj"] == (3.0, 2.0)
        assert ratio["q_proj"] == (2.0, 3.0) and ratio["k_proj"] == (2.0, 6.0)

    def test_conv1d_fan_in_is_its_first_dimension(self, gpt2):
        table = gpt2.model(gpt2.base(n_inner=64, layers=1).at_width(64).replace(n_inner=64 * 4)).mu_table()
        assert table["transformer.h.0.mlp.c_fc.weight"].fan_in == 2.0
        assert table["transformer.h.0.mlp.c_proj.weight"].fan_in == 4.0
        assert parameter_fans(Conv1D(3, 5), torch.Size((5, 3))) == (0, 1)
        assert parameter_fans(nn.Linear(5, 3), torch.Size((3, 5))) == (1, 0)

    def test_base_shapes_of_another_design_are_refused(self, llama, gpt2):
        foreign = gpt2.base().to_mup_base()
        with pytest.raises(ConfigurationError, match=r"MuLlamaConfig: mup_base must give .*base\.at_width"):
            llama.base(mup_base=foreign)
        good = llama.base().to_mup_base()
        for bad in (good | {"hidden_size": 0}, good | {"hidden_size": 32.0}, good | {"hidden_size": True}, {}):
            with pytest.raises(ConfigurationError, match="mup_base"):
                llama.base(mup_base=bad)
