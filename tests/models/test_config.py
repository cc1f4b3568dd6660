"""Widths, stock configs, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, T5Config

from hf_muscaling import MuGPT2Config, MuGPT2LMHeadModel, MuLlamaConfig, MuLlamaModel, MuT5Config
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models import require_mu_model


class TestConfig:
    """Widths, stock configs, and what is refused."""

    def test_at_width_scales_every_infinite_dimension_and_keeps_the_head_size(self, architecture):
        wide = architecture.base().at_width(96)
        assert wide.hidden_size == 96 and wide.num_attention_heads == 6 and wide.head_size == 16
        assert wide.num_hidden_layers == 2 and wide.vocab_size == 64
        if architecture.name == "llama":
            assert (wide.num_key_value_heads, wide.intermediate_size, wide.head_dim) == (3, 264, 16)
        assert architecture.base().at_width(64).mup_base == architecture.base().to_mup_base()

    def test_at_width_from_any_width_equals_from_the_base(self, architecture):
        base = architecture.base(output_multiplier=3.0, zero_query=True)
        assert base.at_width(64).at_width(128).to_dict() == base.at_width(128).to_dict()
        assert base.at_width(64).base_config().to_dict() == base.to_dict()

    @pytest.mark.parametrize("width", [0, -32, True, 64.0, "64", None])
    def test_widths_that_are_no_positive_whole_number(self, architecture, width):
        with pytest.raises(ConfigurationError, match="positive whole number"):
            architecture.base().at_width(width)

    @pytest.mark.parametrize("width, near", [(100, "96 and 112"), (8, "16 and 32"), (40, "32 and 48")])
    def test_width_not_divisible_by_the_head_size(self, gpt2, width, near):
        with pytest.raises(ConfigurationError, match=f"Width {width} .*multiple of 16; the nearest are {near}"):
            gpt2.base().at_width(width)

    def test_width_that_splits_a_group_of_query_heads(self, llama):
        base = llama.base(width=64, heads=4)  # two groups of two heads of 16
        assert base.at_width(96).num_key_value_heads == 3
        with pytest.raises(ConfigurationError, match="Width 80 .*num_key_value_heads=2.5.*multiple of 32"):
            base.at_width(80)

    def test_json_round_trip_keeps_everything(self, architecture, tmp_path):
        config = architecture.base(
            output_multiplier=2.5, zero_query=True, tie_word_embeddings=False, zero_readout=True, initializer_range=0.04
        ).at_width(128)
        assert config.tie_word_embeddings is False
        config.save_pretrained(tmp_path)
        again = type(config).from_pretrained(tmp_path)
        assert again.to_dict() == config.to_dict()
        assert {k: getattr(again, k) for k in ("output_multiplier", "zero_query", "zero_readout")} == {
            "output_multiplier": 2.5,
            "zero_query": True,
            "zero_readout": True,
        }

    def test_copies_do_not_share_their_base_shapes(self, architecture):
        wide = architecture.base().at_width(64)
        other = wide.replace(output_multiplier=2.0)
        depth = wide.mu_depth_fields[0]
        other.mup_base[depth] = 7
        assert wide.mup_base[depth] == 2

    def test_from_stock(self, architecture):
        stock = architecture.base(width=64, heads=4).to_stock_config()
        assert type(stock).__module__.startswith("transformers.") and not hasattr(stock, "mup_base")
        config = architecture.config_class.from_stock(stock)
        assert config.is_base and config.hidden_size == 64
        config = architecture.config_class.from_stock(stock, base_width=32, output_multiplier=2.0)
        assert config.hidden_size == 64 and config.output_multiplier == 2.0
        if architecture.name != "t5":
            assert config.base_config().num_attention_heads == 2
        assert config.base_config().hidden_size == 32
        assert architecture.model(config).width_multiplier() == 2.0
        assert config.to_stock_config().to_dict() == stock.to_dict()

    def test_from_stock_refuses_other_architectures_and_a_second_parametrisation(self, llama):
        with pytest.raises(ConfigurationError, match="takes a LlamaConfig, got GPT2Config"):
            MuLlamaConfig.from_stock(GPT2Config())
        with pytest.raises(ConfigurationError, match="takes a GPT2Config, got LlamaConfig"):
            MuGPT2Config.from_stock(LlamaConfig())
        with pytest.raises(ConfigurationError, match="already sets mup, mup_base_width: .*twice"):
            MuLlamaConfig.from_stock(LlamaConfig(mup=True, mup_base_width=64))

    def test_an_untied_t5_stays_untied_whatever_the_way(self, t5, tmp_path):
        config = t5.base(tie_word_embeddings=False)
        config.save_pretrained(tmp_path)
        for same in (config, config.at_width(64), t5.base().replace(tie_word_embeddings=False), copy.deepcopy(config),
                     type(config).from_pretrained(tmp_path)):  # fmt: skip
            assert same.tie_word_embeddings is False and same.scale_decoder_outputs is False
        v11 = T5Config(tie_word_embeddings=False)  # transformers ties it back and drops the decoder's 1/√d
        assert MuT5Config.from_stock(v11).scale_decoder_outputs is False

    def test_a_stock_config_or_model_is_refused_with_the_way_to_go(self, architecture, tmp_path):
        stock = architecture.base().to_stock_config()
        name = type(stock).__name__
        with pytest.raises(ConfigurationError, match=rf"takes a Mu{name}, got {name}; .*Mu{name}\.from_stock"):
            architecture.model_class(stock)
        architecture.stock(architecture.base()).save_pretrained(tmp_path)
        with pytest.raises(ConfigurationError, match=f"reads a 'mu_{architecture.name}' model, and this is a"):
            architecture.model_class.from_pretrained(tmp_path)

    def test_base_width_is_no_field(self, architecture):
        with pytest.raises(ConfigurationError, match="has no field base_width: .*from_stock"):
            architecture.config_class(base_width=16)

    def test_unknown_fields_and_settings_are_refused(self, architecture):
        base = architecture.base()
        with pytest.raises(ConfigurationError, match="depth_parametrization='mup' is unknown"):
            base.replace(depth_parametrization="mup")
        with pytest.raises(ConfigurationError, match="no field widht"):
            base.replace(widht=3)
        with pytest.raises(ConfigurationError, match="parametrization='ntk' is unknown"):
            base.replace(parametrization="ntk")
        with pytest.raises(ConfigurationError, match="output_multiplier=0"):
            base.replace(output_multiplier=0)

    def test_heads_that_do_not_divide_the_width(self, gpt2):
        with pytest.raises(ConfigurationError, match="width 34 is not divisible by the number of heads 4"):
            gpt2.config_class(n_embd=34, n_head=4)

    def test_require_mu_model_unwraps_and_names_the_remedy(self, llama):
        model = llama.model(llama.base())
        wrapped = nn.Module()
        wrapped.module = torch.compile(model, backend="eager")
        assert require_mu_model(wrapped, "it") is model
        with pytest.raises(ConfigurationError, match="got LlamaForCausalLM: use its μP variant MuLlamaForCausalLM"):
            require_mu_model(LlamaForCausalLM(llama.base().to_stock_config()), "it")


def test_classes_know_their_config():
    assert MuGPT2LMHeadModel.config_class is MuGPT2Config and MuLlamaModel.config_class is MuLlamaConfig
