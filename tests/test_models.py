"""μP GPT-2 and Llama: equal to stock at base width, Table 2 away from it, and the same model after every round trip."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from hf_muscaling import MuGPT2Config, MuGPT2LMHeadModel, MuLlamaConfig, MuLlamaForCausalLM, MuLlamaModel, MuReadout
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models import require_mu_model
from hf_muscaling.models.base import parameter_fans
from hf_muscaling.optim import MuAdamW


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(tokens).logits


def derived_role(name, model, base_shape, wide_shape):
    """Return a parameter's role from the dimensions that grew between two widths, without looking at the plan."""
    grew = [w > b for b, w in zip(base_shape, wide_shape, strict=True)]
    if sum(grew) == 0:
        return "finite"
    if sum(grew) == 2:
        return "hidden"
    if len(grew) == 1:
        return "vector"
    module = model.get_submodule(name.rpartition(".")[0])
    # An embedding looks rows up, so (finite, infinite) is input-like; a linear layer stores (out, in).
    return "input" if isinstance(module, nn.Embedding) else "readout"


class TestStock:
    """At base width nothing differs from transformers."""

    def test_parameters_and_logits_equal_stock_bit_for_bit(self, architecture, tied, tokens):
        config = architecture.base(tie_word_embeddings=tied)
        ours, stock = architecture.model(config, seed=3), architecture.stock(config, seed=3)
        mine, theirs = ours.state_dict(), stock.state_dict()
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
        assert torch.equal(logits(ours, tokens), logits(stock, tokens))
        wide = config.at_width(64)
        assert not torch.equal(
            architecture.model(wide, seed=3).state_dict()[k := self.matrix(architecture)],
            architecture.stock(wide, seed=3).state_dict()[k],
        )  # the comparison can fail: away from the base width it does

    @staticmethod
    def matrix(architecture):
        return {"gpt2": "transformer.h.0.attn.c_attn.weight", "llama": "model.layers.0.mlp.down_proj.weight"}[
            architecture.name
        ]

    def test_standard_parametrisation_equals_stock_at_every_width(self, architecture, tied, tokens):
        config = architecture.base(tie_word_embeddings=tied, parametrization="sp").at_width(96)
        ours, stock = architecture.model(config, seed=1), architecture.stock(config, seed=1)
        assert torch.equal(logits(ours, tokens), logits(stock, tokens))

    def test_at_base_width_through_at_width_equals_the_base(self, architecture, tokens):
        config = architecture.base()
        same = config.at_width(config.hidden_size)
        assert config.is_base and same.is_base and not config.at_width(64).is_base
        a, b = architecture.model(config), architecture.model(same)
        assert torch.equal(logits(a, tokens), logits(b, tokens))

    def test_the_readout_keeps_the_tie(self, architecture, tied):
        model = architecture.model(architecture.base(tie_word_embeddings=tied).at_width(64))
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied


class TestPlan:
    """Which parameter has which role."""

    def test_every_parameter_matches_exactly_one_pattern(self, architecture, tied):
        model = architecture.model(architecture.base(tie_word_embeddings=tied).at_width(64))
        assert set(model.mu_table()) == {name for name, _ in model.named_parameters()}

    def test_biases_and_qkv_bias_have_a_role(self, llama):
        model = llama.model(llama.base(attention_bias=True, mlp_bias=True).at_width(64))
        roles = {s.role for n, s in model.mu_table().items() if n.endswith("bias")}
        assert roles == {"vector"}

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


class TestInitialisation:
    """Standard deviations under the table."""

    def expected_std(self, model, name):
        scale, sigma = model.mu_table()[name], model.config.initializer_range
        if name.endswith("c_proj.weight"):  # GPT-2's residual projections, kept by μP
            sigma /= math.sqrt(2 * model.config.num_hidden_layers)
        return sigma * scale.fan_in**-0.5 if scale.role == "hidden" else sigma

    def test_std_of_every_matrix_at_four_times_the_width(self, architecture, tied):
        config = architecture.base(width=64, heads=4, vocabulary=256, tie_word_embeddings=tied, initializer_range=0.05)
        model = architecture.model(config.at_width(256))
        checked = 0
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                error = parameter.std().item() / self.expected_std(model, name) - 1
                assert abs(error) < 4 / math.sqrt(2 * parameter.numel()), (name, error)  # four standard errors
                checked += 1
            else:
                assert set(parameter.unique().tolist()) <= {0.0, 1.0}
        assert checked == {"gpt2": 10, "llama": 15}[architecture.name] + (not tied)

    def test_std_follows_each_parameters_own_fan_in(self, llama):
        base = llama.base(width=64, heads=4, layers=1)
        model = llama.model(base.at_width(256).replace(intermediate_size=176 * 16))
        layer = model.model.layers[0]
        assert layer.mlp.down_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
        assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.02)
        assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.02)

    def test_stock_initialisation_would_fail_that(self, architecture):
        config = architecture.base(width=64, heads=4).at_width(256)
        stock = architecture.stock(config)
        name = TestStock.matrix(architecture)
        assert stock.state_dict()[name].std().item() == pytest.approx(0.02, rel=0.05)
        assert self.expected_std(architecture.model(config), name) == pytest.approx(0.01)

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
        if architecture.name == "gpt2":
            for block, plain in zip(model.transformer.h, other.transformer.h, strict=True):
                assert not block.attn.c_attn.weight[:, :64].any()
                assert torch.equal(block.attn.c_attn.weight[:, 64:], plain.attn.c_attn.weight[:, 64:])
        else:
            for layer, plain in zip(model.model.layers, other.model.layers, strict=True):
                assert not layer.self_attn.q_proj.weight.any()
                assert torch.equal(layer.self_attn.k_proj.weight, plain.self_attn.k_proj.weight)

    def test_zero_readout(self, architecture, tokens):
        config = architecture.base(zero_readout=True, tie_word_embeddings=False).at_width(64)
        model = architecture.model(config)
        assert not model.lm_head.weight.any() and model.get_input_embeddings().weight.any()
        assert not logits(model, tokens).any()

    def test_zero_readout_is_refused_with_a_tied_head(self, architecture):
        with pytest.raises(ConfigurationError, match="zero_readout=True with tie_word_embeddings=True .* untie"):
            architecture.base(zero_readout=True, tie_word_embeddings=True)


class TestMultipliers:
    """The readout's τ/r and the attention's 1/d."""

    def test_readout_multiplies_in_training_and_in_evaluation(self, architecture, tied, tokens):
        config = architecture.base(tie_word_embeddings=tied, output_multiplier=5.0).at_width(128)
        model = architecture.model(config)
        assert isinstance(model.lm_head, MuReadout) and "multiplier=1.25" in repr(model)
        for training in (True, False):
            model.train(training)
            with torch.no_grad():
                out = model(tokens, output_hidden_states=True)
            plain = nn.functional.linear(out.hidden_states[-1], model.lm_head.weight)
            torch.testing.assert_close(out.logits, 1.25 * plain, rtol=1e-5, atol=1e-6)
            assert (out.logits - plain).abs().max() > 1e-3  # the multiplier is seen by this test

    def test_attention_is_one_over_d_along_the_head_size(self, architecture):
        base = architecture.base(width=64, heads=4)  # head size 16
        config = base.at_width(128).replace(num_attention_heads=2)
        if architecture.name == "llama":
            config = config.replace(head_dim=64, num_key_value_heads=1)
        scalings = {m.scaling for m in architecture.model(config)._attention_modules()}
        # 1/√16 at the base head size, and 1/d relative to it: 1/√16 · 16/64
        assert scalings == {0.25 * 16 / 64}
        assert {m.scaling for m in architecture.model(config.replace(parametrization="sp"))._attention_modules()} == {
            64**-0.5
        }

    def test_attention_multiplier_reaches_the_logits(self, gpt2, tokens):
        config = gpt2.base(width=64, heads=4, initializer_range=0.3).replace(num_attention_heads=1)
        own = gpt2.model(config)
        other = gpt2.model(config.replace(mup_base=config.to_mup_base() | {"n_head": 4}))
        assert (logits(own, tokens) - logits(other, tokens)).abs().max() > 1e-3

    def test_per_layer_attention_scaling_of_gpt2_stays(self, gpt2):
        config = gpt2.base(width=64, heads=4, scale_attn_by_inverse_layer_idx=True)
        config = config.replace(num_attention_heads=1, mup_base=config.to_mup_base())
        first, second = (m.scaling for m in gpt2.model(config)._attention_modules())
        assert first == 2 * second == pytest.approx(1 / 16)  # 1/√16 · 16/64, the second layer halved

    def test_resized_embeddings_keep_the_multiplier(self, architecture, tied, tokens):
        model = architecture.model(architecture.base(tie_word_embeddings=tied).at_width(128))
        before = logits(model, tokens)
        model.resize_token_embeddings(72)
        assert isinstance(model.lm_head, MuReadout) and model.lm_head.multiplier == 0.25
        assert model.config.vocab_size == 72 and model.lm_head.out_features == 72
        assert (model.get_input_embeddings().weight is model.lm_head.weight) is tied
        torch.testing.assert_close(logits(model, tokens)[..., :64], before)
        assert set(model.mu_table()) == {name for name, _ in model.named_parameters()}


class TestRoundTrips:
    """The same logits whatever happens to the model."""

    @pytest.fixture
    def model(self, architecture, tied):
        config = architecture.base(tie_word_embeddings=tied, output_multiplier=3.0, initializer_range=0.1)
        return architecture.model(config.at_width(64)).eval()

    def test_save_and_load(self, model, tokens, tmp_path):
        model.save_pretrained(tmp_path)
        assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
        for loader in (type(model), AutoModelForCausalLM):
            again = loader.from_pretrained(tmp_path)
            assert type(again) is type(model) and again.config.mup_base == model.config.mup_base
            assert torch.equal(logits(again, tokens), logits(model, tokens))
            assert again.mu_table() == model.mu_table()
        assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
        bare = AutoModel.from_pretrained(tmp_path)
        hidden = model(tokens, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(bare(tokens).last_hidden_state, hidden)

    def test_auto_classes_build_from_config(self, model):
        assert type(AutoModelForCausalLM.from_config(model.config)) is type(model)

    def test_a_stock_class_does_not_load_it_in_silence(self, model, architecture, tokens, tmp_path, caplog):
        model.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["model_type"] == {"gpt2": "mu_gpt2", "llama": "mu_llama"}[architecture.name]
        stock = type(architecture.stock(architecture.base()))
        from transformers.utils import logging

        logging.enable_propagation()
        try:
            stock.from_pretrained(tmp_path)
        except (ValueError, RuntimeError) as error:
            assert written["model_type"] in str(error)
        else:
            assert (
                f"`{written['model_type']}`" in caplog.text
            )  # "You are using a model of type … This is not supported"
        finally:
            logging.disable_propagation()

    def test_deepcopy_and_state_dict(self, model, architecture, tokens):
        assert torch.equal(logits(copy.deepcopy(model), tokens), logits(model, tokens))
        other = architecture.model(model.config, seed=5)
        assert not torch.equal(logits(other, tokens), logits(model, tokens))
        other.load_state_dict(model.state_dict())
        assert torch.equal(logits(other, tokens), logits(model, tokens))

    def test_generate_uses_the_multiplier(self, model, tokens):
        prompt = tokens[:, :4]
        plain = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        written = model.generate(prompt, max_new_tokens=6, **plain)
        expected = prompt
        for _ in range(6):
            expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(written, expected)
        plain |= {"output_logits": True, "return_dict_in_generate": True}
        scores = model.generate(prompt, max_new_tokens=1, **plain).logits[0]
        torch.testing.assert_close(scores, logits(model, prompt)[:, -1])

    def test_compile_without_graph_breaks(self, model, tokens):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            out = compiled(input_ids=tokens, labels=tokens, use_cache=False)
            expected = model(input_ids=tokens, labels=tokens, use_cache=False)
        torch.testing.assert_close(out.logits, expected.logits)
        torch.testing.assert_close(out.loss, expected.loss)

    @pytest.mark.slow
    def test_compile_with_inductor(self, architecture, tokens):
        torch._dynamo.reset()
        model = architecture.model(architecture.base(layers=1).at_width(64)).eval()
        compiled = torch.compile(model, fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(
                compiled(tokens, use_cache=False).logits, logits(model, tokens), atol=1e-5, rtol=1e-4
            )

    def test_bfloat16(self, model, architecture, tokens, tmp_path):
        cast = copy.deepcopy(model).to(torch.bfloat16)
        assert cast.lm_head.weight.dtype == torch.bfloat16 and cast.lm_head.multiplier == model.lm_head.multiplier
        torch.testing.assert_close(logits(cast, tokens).float(), logits(model, tokens), atol=0.05, rtol=0.1)
        cast.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert all(torch.equal(v, cast.state_dict()[k]) for k, v in again.state_dict().items())
        assert again.lm_head.multiplier == model.lm_head.multiplier
        # not bit for bit: a cast rounds Llama's rotary buffer too, loading computes it in fp32
        torch.testing.assert_close(logits(again, tokens).float(), logits(model, tokens), atol=0.05, rtol=0.1)
        born = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
        assert {p.dtype for p in born.parameters()} == {torch.bfloat16}
        assert born.lm_head.multiplier == model.lm_head.multiplier

    def test_nothing_is_pinned_on_parameters(self, model):
        pinned = {k for p in model.parameters() for k in vars(p) if "mu" in k or "infshape" in k}
        assert not pinned


class TestIncompleteCheckpoints:
    """A tensor that a checkpoint lacks is initialised by the table, and no other tensor changes."""

    @pytest.mark.parametrize(
        "name, lacks",
        [
            ("gpt2", "transformer.h.1.mlp.c_proj.weight"),
            ("gpt2", "transformer.h.0.attn.c_attn.weight"),
            ("gpt2", "transformer.h.0.attn.c_attn.bias"),
            ("gpt2", "lm_head.weight"),
            ("gpt2", "transformer.ln_f.weight"),
            ("llama", "model.layers.1.mlp.down_proj.weight"),
            ("llama", "model.embed_tokens.weight"),
            ("llama", "lm_head.weight"),
            ("llama", "model.layers.0.input_layernorm.weight"),
        ],
    )
    def test_only_the_missing_tensor_is_initialised(self, request, tmp_path, name, lacks):
        architecture = request.getfixturevalue(name)
        config = architecture.base(width=64, heads=4, tie_word_embeddings=False, initializer_range=0.05)
        model = architecture.model(config.at_width(256))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(3.0)  # far from any initial value
        model.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        tensors = load_file(file)
        del tensors[lacks]
        save_file(tensors, file, metadata={"format": "pt"})
        loaded = architecture.model_class.from_pretrained(tmp_path)
        for key, value in loaded.state_dict().items():
            if key != lacks:
                assert torch.equal(value, tensors[key]), key
        value = loaded.get_parameter(lacks)
        if value.dim() == 1:
            assert torch.equal(value, torch.full_like(value, float(lacks.endswith("weight"))))
        else:
            expected = TestInitialisation().expected_std(loaded, lacks)
            assert value.std().item() == pytest.approx(expected, rel=0.05)

    def test_a_missing_zero_query_is_zero_and_a_trained_one_stays(self, llama, tmp_path):
        model = llama.model(llama.base(zero_query=True).at_width(64))
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight.fill_(0.5)
        model.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["model.layers.0.self_attn.q_proj.weight"]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        first, second = MuLlamaForCausalLM.from_pretrained(tmp_path).model.layers
        assert not first.self_attn.q_proj.weight.any()
        assert (second.self_attn.q_proj.weight == 0.5).all()


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
        other.mup_base["num_hidden_layers"] = 7
        assert wide.mup_base["num_hidden_layers"] == 2

    def test_from_stock(self, architecture):
        stock = architecture.base(width=64, heads=4).to_stock_config()
        assert type(stock).__module__.startswith("transformers.") and not hasattr(stock, "mup_base")
        config = architecture.config_class.from_stock(stock)
        assert config.is_base and config.hidden_size == 64
        config = architecture.config_class.from_stock(stock, base_width=32, output_multiplier=2.0)
        assert config.hidden_size == 64 and config.output_multiplier == 2.0
        assert config.base_config().num_attention_heads == 2 and config.base_config().hidden_size == 32
        assert architecture.model(config).width_multiplier() == 2.0
        assert config.to_stock_config().to_dict() == stock.to_dict()

    def test_from_stock_refuses_other_architectures_and_a_second_parametrisation(self, llama):
        with pytest.raises(ConfigurationError, match="takes a LlamaConfig, got GPT2Config"):
            MuLlamaConfig.from_stock(GPT2Config())
        with pytest.raises(ConfigurationError, match="takes a GPT2Config, got LlamaConfig"):
            MuGPT2Config.from_stock(LlamaConfig())
        with pytest.raises(ConfigurationError, match="already sets mup, mup_base_width: .*twice"):
            MuLlamaConfig.from_stock(LlamaConfig(mup=True, mup_base_width=64))

    def test_unknown_fields_and_settings_are_refused(self, architecture):
        base = architecture.base()
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


def activation_changes(architecture, width, *, flat_lr=False, parametrization="mup", steps=4, lr=2**-8):
    """Return the mean |change| of the logits and of the last block's output after each step on one random batch.

    The readout starts at zero, so that the first steps show no logits left over from the initialisation; the output of
    the last block comes before the final norm, which would hide its growth.
    """
    base = architecture.base(
        width=64, heads=4, vocabulary=256, tie_word_embeddings=False, parametrization=parametrization,
        zero_query=True, zero_readout=True, initializer_range=0.05,
    )  # fmt: skip
    model = architecture.model(base.at_width(width), seed=width)
    batch = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0) if flat_lr else MuAdamW(model, lr=lr)
    seen = {}
    blocks = model.transformer.h if architecture.name == "gpt2" else model.model.layers
    blocks[-1].register_forward_hook(lambda _m, _i, out: seen.update(hidden=out[0] if type(out) is tuple else out))
    start, changes = None, []
    for step in range(steps + 1):
        out = model(batch, labels=batch)
        now = {"logits": out.logits.detach(), "hidden": seen["hidden"].detach()}
        start = start or now
        if step:
            changes.append([(now[k] - start[k]).abs().mean().item() for k in ("logits", "hidden")])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return changes


def slopes(architecture, **settings):
    """Return the log-log slopes over widths of each step's change in the logits, and in the last block's output."""
    widths = [64, 128, 256, 512]
    changes = torch.tensor([activation_changes(architecture, w, **settings) for w in widths]).log()
    x = torch.tensor(widths).log()
    x = x - x.mean()
    logits, hidden = ((x[:, None, None] * changes).sum(0) / x.square().sum()).T
    return logits, hidden[1:]  # with a zero readout, nothing below it moves in the first step


class TestCoordinates:
    """A coordinate check: changes stay Θ(1) under μP, and the same test fails without it."""

    def test_changes_keep_their_size_under_mup(self, architecture):
        assert max(found.abs().max() for found in slopes(architecture)) < 0.2

    def test_standard_parametrisation_fails(self, architecture):
        logits, hidden = slopes(architecture, parametrization="sp")
        assert logits.max() > 0.7 and hidden.max() > 0.9

    def test_a_flat_learning_rate_fails(self, architecture):
        _, hidden = slopes(architecture, flat_lr=True)
        assert hidden.max() > 0.9


def test_classes_know_their_config():
    assert MuGPT2LMHeadModel.config_class is MuGPT2Config and MuLlamaModel.config_class is MuLlamaConfig
