"""Any other architecture: derived roles equal the written plans, the built is checked, the doubtful refused."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from hf_muscaling import (
    MuAutoModelForCausalLM,
    MuAutoModelForMaskedLM,
    MuAutoModelForSeq2SeqLM,
    MuLlamaForCausalLM,
    MuReadout,
    MuTrainer,
    MuTrainingArguments,
    convert,
    coordinate_check,
    mu_config,
    mu_variant,
    train_series,
    verify_variant,
)
from hf_muscaling.convert.config import mu_config_class
from hf_muscaling.convert.model import DerivedModelMixin
from hf_muscaling.convert.probe import narrow_base, stock_init_exponents
from hf_muscaling.convert.roles import derive
from hf_muscaling.data import PackedBlocks
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models import MU_MODELS, pretraining_class
from hf_muscaling.models.config import stock_class
from hf_muscaling.optim import MuAdamW, adam_lr_scale, sgd_lr_scale
from tests.models.helpers import logits

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 88, "num_attention_heads": 4, "num_hidden_layers": 2,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**TINY, "num_key_value_heads": 2}
NO_FFN = {k: v for k, v in TINY.items() if k != "intermediate_size"}
MT5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
BART = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 128, "max_position_embeddings": 64,
    "dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip


def falcon(**settings):
    return hf.FalconConfig(**{**NO_FFN, "multi_query": False, "num_kv_heads": 4, **settings})


def build(config, seed=0):
    torch.manual_seed(seed)
    return pretraining_class(config).from_config(config)


def derived_class(stock):
    """Return the derived variant of a class that has a written one."""
    return type(
        f"Mu{stock.__name__}", (DerivedModelMixin, stock), {"config_class": mu_config_class(stock.config_class)}
    )


WRITTEN = [cls for models in MU_MODELS.values() for cls in models.values()]


class TestAgainstTheWrittenVariants:
    """GPT-2, Llama, BERT and T5, derived without looking at their plans."""

    @staticmethod
    def base(cls):
        config = cls.config_class
        names = {"MuGPT2Config": {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 16},
                 "MuT5Config": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2}}  # fmt: skip
        small = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
        return config(vocab_size=64, **names.get(config.__name__, small))

    @pytest.mark.parametrize("cls", WRITTEN, ids=lambda c: c.__name__)
    def test_roles_equal_the_written_plan(self, cls):
        base = self.base(cls)
        stock, wide = stock_class(cls), base.at_width(64)
        # shapes cannot tell a classifier from a router inside the network: these the plan must name
        heads = {"*score.weight": "readout", "*classifier.weight": "readout", "*summary.weight": "readout",
                 "*seq_relationship.weight": "readout", "*out_proj.weight": "readout"}  # fmt: skip
        with torch.device("meta"):
            names = {n for n, _ in stock(base.to_stock_config()).named_parameters()}
        plan = {p: r for p, r in heads.items() if any(n.endswith(p.strip("*")) for n in names)}
        found = derive(stock, base.to_stock_config(), wide.to_stock_config(), 2, plan)
        model = cls(wide)
        for name, scale in model.mu_table().items():
            place = found.places[name]
            assert (place.role, name) == (scale.role, name)
            assert (place.fan_in is not None) == (scale.fan_in == 2.0), name
            assert (place.fan_out is not None) == (scale.fan_out == 2.0), name

    @pytest.mark.parametrize(
        "cls", [hf.GPT2LMHeadModel, hf.LlamaForCausalLM, hf.BertForMaskedLM], ids=lambda c: c.__name__
    )
    def test_models_equal_the_written_ones_at_another_width(self, cls):
        written = getattr(hf, cls.__name__) and mu_variant(cls)
        base = self.base(written).replace(hidden_size=32)
        torch.manual_seed(1)
        ours = derived_class(cls)(mu_config_class(cls.config_class).from_stock(base.to_stock_config()).at_width(128))
        torch.manual_seed(1)
        theirs = written(base.at_width(128))
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
        tokens = torch.randint(0, 64, (2, 8))
        assert torch.equal(logits(ours, tokens), logits(theirs, tokens))

    def test_measured_fan_in_initialisation_equals_the_written_one_of_t5(self):
        base = self.base(mu_variant(hf.T5ForConditionalGeneration))
        torch.manual_seed(1)
        ours = derived_class(hf.T5ForConditionalGeneration)(
            mu_config_class(hf.T5Config).from_stock(base.to_stock_config()).at_width(128)
        )
        torch.manual_seed(1)
        theirs = mu_variant(hf.T5ForConditionalGeneration)(base.at_width(128))
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=0)

    def test_written_classes_are_returned(self):
        assert mu_variant(hf.LlamaForCausalLM) is MuLlamaForCausalLM
        assert mu_variant(MuLlamaForCausalLM) is MuLlamaForCausalLM
        assert type(mu_config(hf.LlamaConfig(**GROUPED))).__name__ == "MuLlamaConfig"
        with pytest.raises(ConfigurationError, match="MuLlamaForCausalLM has a plan of its own"):
            mu_variant(hf.LlamaForCausalLM, plan={"*": "hidden"})


CONVERTED = {
    "mistral": (hf.MistralConfig, GROUPED, MuAutoModelForCausalLM),
    "qwen3": (hf.Qwen3Config, {**GROUPED, "head_dim": 16}, MuAutoModelForCausalLM),  # heads wider than the network
    "gemma": (hf.GemmaConfig, {**GROUPED, "head_dim": 8}, MuAutoModelForCausalLM),
    "roberta": (hf.RobertaConfig, TINY, MuAutoModelForMaskedLM),
    "bart": (hf.BartConfig, BART, MuAutoModelForSeq2SeqLM),
    "mt5": (hf.MT5Config, MT5, MuAutoModelForSeq2SeqLM),
}


@pytest.fixture(params=CONVERTED)
def converted(request):
    config_class, fields, auto = CONVERTED[request.param]
    return config_class(**fields), auto


class TestConversion:
    """What is built without a plan."""

    def test_at_base_width_it_is_the_stock_model(self, converted, tokens):
        stock, _ = converted
        config = mu_config(stock)
        ours, theirs = build(config).eval(), build(config.to_stock_config()).eval()
        assert type(ours).__name__ == f"Mu{type(theirs).__name__}" and isinstance(ours, type(theirs))
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
        assert torch.equal(logits(ours, tokens), logits(theirs, tokens))
        wide = config.at_width(128)  # away from the base width the comparison fails
        assert not torch.equal(logits(build(wide), tokens), logits(build(wide.to_stock_config()), tokens))
        control = wide.replace(parametrization="sp")
        assert torch.equal(logits(build(control), tokens), logits(build(wide.to_stock_config()), tokens))

    def test_saved_and_loaded(self, converted, tokens, tmp_path):
        stock, auto = converted
        model = auto.from_config(stock, base_width=16, output_multiplier=3.0, verify=False)
        assert model.config.width_multiplier == 2.0 and model.get_output_embeddings().multiplier == 1.5
        model.save_pretrained(tmp_path)
        assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
        again = auto.from_pretrained(tmp_path)
        assert type(again) is type(model) and again.config.to_dict() == model.config.to_dict() | {
            k: again.config.to_dict()[k] for k in ("_name_or_path", "architectures") if k in again.config.to_dict()
        }
        assert torch.equal(logits(again, tokens), logits(model, tokens))
        assert torch.equal(logits(copy.deepcopy(again), tokens), logits(model, tokens))

    def test_verified_and_total(self, converted):
        stock, auto = converted
        model = auto.from_config(stock)  # verifies: an error would be raised
        assert set(model.mu_table()) == {n for n, _ in model.named_parameters()}
        assert isinstance(model.get_output_embeddings(), MuReadout)

    def test_every_infinite_dimension_follows(self):
        wide = mu_config(hf.BartConfig(**BART)).at_width(64)
        assert (wide.d_model, wide.encoder_attention_heads, wide.decoder_attention_heads) == (64, 4, 8)
        assert (wide.encoder_ffn_dim, wide.decoder_ffn_dim, wide.encoder_layers, wide.decoder_layers) == (
            128,
            256,
            1,
            2,
        )
        wide = mu_config(hf.MT5Config(**MT5)).at_width(64)
        assert (wide.d_kv, wide.num_heads, wide.d_ff) == (8, 8, 128)
        wide = mu_config(hf.OPTConfig(**{**NO_FFN, "word_embed_proj_dim": 32})).at_width(64)
        assert wide.word_embed_proj_dim == 64  # an embedding as wide as the network is no projection

    def test_norms_over_the_head_are_finite(self):
        table = build(mu_config(hf.Qwen3Config(**GROUPED, head_dim=8)).at_width(64)).mu_table()
        assert table["model.layers.0.self_attn.q_norm.weight"].role == "finite"
        assert table["model.layers.0.self_attn.q_proj.weight"].fan_in == 2.0

    def test_resized_embeddings_keep_the_multiplier(self, tokens):
        model = build(mu_config(hf.MistralConfig(**GROUPED)).at_width(64))
        before = logits(model, tokens)
        model.resize_token_embeddings(72)
        assert model.lm_head.multiplier == 0.5 and set(model.mu_table()) == {n for n, _ in model.named_parameters()}
        torch.testing.assert_close(logits(model, tokens)[..., :64], before)

    def test_zero_query_and_zero_readout(self, tokens):
        model = build(mu_config(hf.MistralConfig(**GROUPED), zero_query=True, zero_readout=True).at_width(64))
        assert not model.model.layers[0].self_attn.q_proj.weight.any() and not logits(model, tokens).any()
        assert model.model.layers[0].self_attn.k_proj.weight.any()
        with pytest.raises(ConfigurationError, match="zero_query=True, but no linear layer is named"):
            build(mu_config(hf.GPTNeoXConfig(**TINY), zero_query=True))

    def test_classes_can_be_imported_and_subclassed(self):
        assert convert.MuMistralForCausalLM is mu_variant(hf.MistralForCausalLM)
        assert convert.MuMistralForCausalLM.config_class is convert.MuMistralConfig
        with pytest.raises(AttributeError):
            _ = convert.MuNothing
        assert convert.MuMistralForCausalLM._can_set_attn_implementation()  # transformers reads a module's source
        assert not mu_variant(hf.FalconForCausalLM)._can_set_attn_implementation() or (
            hf.FalconForCausalLM._can_set_attn_implementation()
        )

    @pytest.mark.slow
    def test_loaded_in_a_fresh_process(self, tokens, tmp_path):
        model = MuAutoModelForCausalLM.from_config(
            hf.MixtralConfig(**GROUPED, num_local_experts=4), base_width=16, plan={"*.mlp.gate.weight": "router"}
        )
        model.save_pretrained(tmp_path)
        torch.save({"tokens": tokens, "logits": logits(model, tokens)}, tmp_path / "expected.pt")
        code = (
            "import sys, torch\nfrom hf_muscaling import MuAutoModelForCausalLM\n"
            "model = MuAutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
            "seen = torch.load(sys.argv[1] + '/expected.pt', weights_only=True)\n"
            "assert torch.equal(model(seen['tokens']).logits, seen['logits'])\n"
            "print(type(model).__name__, model.mu_table()['model.layers.0.mlp.gate.weight'].role)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert done.stdout.split() == ["MuMixtralForCausalLM", "router"], done.stderr


class TestStockInitialisation:
    """Initialisations that follow the width already."""

    def test_exponents_are_measured(self):
        exponents = stock_init_exponents(hf.MT5ForConditionalGeneration, mu_config(hf.MT5Config(**MT5)))
        assert exponents["encoder.block.*.layer.*.SelfAttention.q.weight"] == -0.5
        assert exponents["decoder.block.*.layer.*.DenseReluDense.wo.weight"] == -0.5
        assert exponents["shared.weight"] == exponents["encoder.final_layer_norm.weight"] == 0.0
        config = mu_config(hf.ModernBertConfig(**TINY, cls_token_id=0, sep_token_id=0), plan={"*.attn": "fixed_head"})
        exponents = stock_init_exponents(hf.ModernBertForSequenceClassification, config)
        assert exponents["classifier.weight"] == -0.5 and exponents["model.layers.*.attn.Wo.weight"] == 0.0

    def test_the_width_is_counted_once(self, monkeypatch):
        base = mu_config(hf.MT5Config(**{**MT5, "d_ff": 256}))

        def ratio():
            name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
            return (build(base.at_width(128)).get_parameter(name).std() / build(base).get_parameter(name).std()).item()

        assert ratio() == pytest.approx(0.5, rel=0.05)  # r = 4: 1/√r
        monkeypatch.setattr(DerivedModelMixin, "stock_init_ratio", lambda *_: 1.0)
        assert ratio() == pytest.approx(0.25, rel=0.05)

    def test_a_spread_that_is_no_power_is_refused(self, monkeypatch):
        stock = hf.MistralPreTrainedModel._init_weights

        def odd(self, module):
            stock(self, module)
            if isinstance(module, nn.Linear) and self.config.hidden_size > 32:
                module.weight.data.mul_(1.4)

        monkeypatch.setattr(hf.MistralPreTrainedModel, "_init_weights", odd)
        config = mu_config(hf.MistralConfig(**{**GROUPED, "rms_norm_eps": 1e-5}))  # another design than the cached ones
        with pytest.raises(ConfigurationError, match="initial spread of .*q_proj.weight goes from .* no power of 1/2"):
            stock_init_exponents(hf.MistralForCausalLM, config)

    def test_the_random_state_is_left_alone(self):
        config = mu_config(hf.MistralConfig(**{**GROUPED, "rms_norm_eps": 2e-5}))
        torch.manual_seed(0)
        state = torch.get_rng_state()
        verify_variant(mu_variant(hf.MistralForCausalLM), config)
        assert torch.equal(torch.get_rng_state(), state)


class TestEmbeddingMultiplier:
    """Gemma multiplies its embedding by √d; under μP it keeps the base's √d."""

    def test_it_keeps_its_value_at_base_width(self, tmp_path):
        base = mu_config(hf.GemmaConfig(**GROUPED, head_dim=8))
        model = build(base.at_width(128))
        assert model.model.embed_tokens.scalar_embed_scale == pytest.approx(32**0.5)
        assert model.model.embed_tokens.embed_scale.item() == pytest.approx(32**0.5)
        standard = build(base.at_width(128).replace(parametrization="sp"))
        assert standard.model.embed_tokens.embed_scale.item() == pytest.approx(128**0.5)
        model.save_pretrained(tmp_path)
        again = MuAutoModelForCausalLM.from_pretrained(tmp_path)  # the buffer is not saved
        assert again.model.embed_tokens.embed_scale.item() == pytest.approx(32**0.5)

    def test_bart_and_pegasus(self):
        bart = build(mu_config(hf.BartConfig(**BART, scale_embedding=True)).at_width(128))
        assert bart.model.shared.embed_scale == bart.model.encoder.embed_tokens.embed_scale == pytest.approx(32**0.5)

    def test_left_alone_the_check_notices(self, monkeypatch):
        monkeypatch.setattr(DerivedModelMixin, "_hold_multipliers_at_base_width", lambda self: None)
        config = mu_config(hf.GemmaConfig(**{**GROUPED, "rms_norm_eps": 1e-5}, head_dim=8))
        with pytest.raises(ConfigurationError, match="the embedding's output is multiplied by the width"):
            verify_variant(mu_variant(hf.GemmaForCausalLM), config)


REFUSED = {
    "router": (
        lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4),
        r'mlp\.gate\.weight \(a finite fan-out inside .*plan=\{"model\.layers\.\*\.mlp\.gate\.weight": "router"\}',
        {"*.mlp.gate.weight": "router"},
    ),
    "attention": (
        falcon,
        r'attention whose `scaling` cannot be set.*plan=\{"transformer\.h\.\*\.self_attention": "fixed_head"\}',
        {"*.self_attention": "fixed_head"},
    ),
    "factorised": (
        lambda: hf.ElectraConfig(**TINY, embedding_size=16),
        r'factorises its embedding, embedding_size=16 .*"embedding_size": "infinite"',
        {"embedding_size": "infinite"},
    ),
    "multipliers": (
        lambda: hf.GraniteConfig(**GROUPED, logits_scaling=8.0),
        r'multiplier of its own, logits_scaling=8\.0: .*"logits_scaling": "constant"',
        {"logits_scaling": "constant"},
    ),
    "logit_scale": (lambda: hf.CohereConfig(**GROUPED), r"logit_scale=0\.0625", {"logit_scale": "constant"}),
    "attention_scalar": (
        lambda: hf.Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=32),
        r"query_pre_attn_scalar=32",
        {"query_pre_attn_scalar": "constant"},
    ),
    "forgotten_width": (
        lambda: hf.Qwen2MoeConfig(
            **GROUPED, moe_intermediate_size=16, shared_expert_intermediate_size=24, num_experts=4
        ),
        r"shared_expert_gate\.weight",
        {"*.mlp.gate.weight": "router", "*.shared_expert_gate.weight": "router"},
    ),
}


class TestRefusals:
    """In doubt it refuses and names the line to add; with that line it builds and verifies."""

    @pytest.mark.parametrize("make, message, plan", REFUSED.values(), ids=REFUSED)
    def test_refused_without_and_built_with_a_plan(self, make, message, plan):
        with pytest.raises(ConfigurationError, match=message):
            build(mu_config(make()))
        config = mu_config(make(), plan=plan)
        model = build(config.at_width(64))
        verify_variant(type(model), config)
        assert model.config.mu_plan == plan
        assert json.loads(model.config.to_json_string())["mu_plan"] == plan

    def test_neutral_multipliers_are_no_reason(self):
        build(mu_config(hf.GraniteConfig(**GROUPED)))
        build(mu_config(hf.Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=8)))
        build(mu_config(hf.ElectraConfig(**TINY, embedding_size=32)))

    def test_a_constant_number_of_key_value_heads(self):
        with pytest.raises(ConfigurationError, match="query_key_value.weight .dimension 0 goes from 48 to 80"):
            build(mu_config(falcon(multi_query=True, num_kv_heads=1), plan={"*.self_attention": "fixed_head"}))

    def test_scaling_that_is_not_applied(self, monkeypatch):
        attention = sys.modules[hf.MistralForCausalLM.__module__].MistralAttention
        forward = attention.forward

        def deaf(self, *args, **kwargs):
            value, self.scaling = self.scaling, self.head_dim**-0.5
            out = forward(self, *args, **kwargs)
            self.scaling = value
            return out

        config = mu_config(hf.MistralConfig(**{**GROUPED, "rms_norm_eps": 3e-5}))
        monkeypatch.setattr(attention, "forward", deaf)
        with pytest.raises(ConfigurationError, match=r"self_attn\.scaling does not reach the output"):
            MuAutoModelForCausalLM.from_config(config)
        config = config.replace(mu_plan={"*.self_attn": "fixed_head"})
        assert MuAutoModelForCausalLM.from_config(config)

    def test_multipliers_out_of_sight(self):
        with pytest.raises(ConfigurationError, match="the readout's input is multiplied by the width"):
            MuAutoModelForSeq2SeqLM.from_config(hf.UMT5Config(**MT5))

    def test_a_readout_that_cannot_be_found(self, monkeypatch):
        monkeypatch.setattr(hf.StableLmForCausalLM, "get_output_embeddings", lambda self: None)
        with pytest.raises(ConfigurationError, match="get_output_embeddings.. returns nothing"):
            build(mu_config(hf.StableLmConfig(**GROUPED)))

    def test_native_parametrisation(self):
        with pytest.raises(ConfigurationError, match="already sets mup, mup_base_width"):
            mu_config(hf.MistralConfig(**GROUPED, mup=True, mup_base_width=16))

    @pytest.mark.parametrize(
        "cls, message",
        [(hf.MambaConfig, "lacks num_attention_heads"), (hf.LlavaConfig, "holds other configs")],
        ids=["mamba", "llava"],
    )
    def test_no_text_transformer(self, cls, message):
        with pytest.raises(ConfigurationError, match=message):
            mu_config(cls())

    @pytest.mark.parametrize("cls", [nn.Linear, hf.ViTModel, "MistralForCausalLM"])
    def test_no_text_model(self, cls):
        with pytest.raises(ConfigurationError, match="mu_variant takes a model class|only text models"):
            mu_variant(cls)

    def test_fixed_heads_stay_fixed(self):
        config = mu_config(falcon(), plan={"*.self_attention": "fixed_head"}).at_width(64)
        with pytest.raises(
            ConfigurationError, match="self_attention carries no `scaling`, so the head size must stay 8"
        ):
            build(config.replace(num_attention_heads=4, num_kv_heads=4))

    def test_depth_is_for_the_written_variants(self):
        with pytest.raises(ConfigurationError, match="depth_parametrization='completep' needs to know"):
            mu_config(hf.MistralConfig(**GROUPED), depth_parametrization="completep")


class TestPlans:
    """The user's additions."""

    def test_wrong_plans_are_refused(self):
        stock = hf.MistralConfig(**GROUPED)
        with pytest.raises(ConfigurationError, match="unknown word 'matrix'"):
            mu_config(stock, plan={"*": "matrix"})
        with pytest.raises(ConfigurationError, match="'model.layer.*' matches nothing"):
            build(mu_config(stock, plan={"model.layer.*": "hidden"}))
        with pytest.raises(ConfigurationError, match="several words"):
            build(mu_config(stock, plan={"*.q_proj.weight": "hidden", "*q_proj*": "vector"}))
        with pytest.raises(ConfigurationError, match="none of its dimensions"):
            build(mu_config(hf.Qwen3Config(**GROUPED, head_dim=8), plan={"*.q_norm.weight": "hidden"}))

    def test_a_role_that_shapes_contradict_is_warned_of(self):
        with pytest.warns(UserWarning, match=r"makes .*embed_tokens\.weight 'hidden', its shapes say 'input'"):
            build(mu_config(hf.MistralConfig(**GROUPED), plan={"*.embed_tokens.weight": "hidden"}))

    def test_a_class_with_a_plan_writes_it_into_the_config(self, tmp_path):
        variant = mu_variant(hf.FalconForCausalLM, plan={"*.self_attention": "fixed_head"})
        config = mu_config(falcon())
        variant(config).save_pretrained(tmp_path)
        assert config.mu_plan is None  # the caller's config is not touched
        assert MuAutoModelForCausalLM.from_pretrained(tmp_path).config.mu_plan == {"*.self_attention": "fixed_head"}

    def test_a_classifier_becomes_a_readout(self):
        variant = mu_variant(hf.MistralForSequenceClassification, plan={"score.weight": "readout"})
        model = variant(mu_config(hf.MistralConfig(**GROUPED)).at_width(128))
        assert isinstance(model.score, MuReadout) and model.score.multiplier == 0.25
        assert type(model.model).__name__ == "MuMistralModel"  # which the Auto classes build inside
        config = mu_config(hf.MistralConfig(**GROUPED)).at_width(64)
        wider_heads = config.replace(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
        for cls in (variant, mu_variant(hf.MistralForCausalLM)):  # base head size 8: once 1/√8 · 8/16
            assert cls(wider_heads).model.layers[0].self_attn.scaling == pytest.approx(8**-0.5 / 2)

    def test_a_router_is_a_readout_under_adam(self):
        """Init and learning rate over r do what a multiplier 1/r does: y = (W/r)·x = W·(x/r)."""
        r, x, target = 8.0, torch.randn(16, 8), torch.randn(16, 3)
        start = torch.randn(3, 8)
        outputs = []
        for multiplier, scale in ((1 / r, 1.0), (1.0, 1 / r)):
            weight = nn.Parameter(start * scale)
            optimizer = torch.optim.Adam([weight], lr=0.1 * scale, eps=0.0)
            for _ in range(4):
                optimizer.zero_grad()
                y = (x * multiplier) @ weight.T
                (y - target).square().mean().backward()
                optimizer.step()
            outputs.append(y.detach())
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
        config = mu_config(hf.MixtralConfig(**GROUPED, num_local_experts=4), plan={"*.mlp.gate.weight": "router"})
        model, base = build(config.at_width(128)), build(config)
        name = "model.layers.0.mlp.gate.weight"
        scale = model.mu_table()[name]
        assert adam_lr_scale(model, scale) == 0.25 and sgd_lr_scale(model, scale) == 0.25
        ratio = model.get_parameter(name).std() / base.get_parameter(name).std()
        assert ratio.item() == pytest.approx(0.25, rel=0.3)


class TestExport:
    """What plain transformers can run."""

    def test_untied_variants_fold(self, tokens):
        model = build(mu_config(hf.MistralConfig(**GROUPED, attention_dropout=0.5)).at_width(128)).train()
        stock = model.to_standard()
        assert stock.training and model.training
        assert type(stock) is hf.MistralForCausalLM and not hasattr(stock.config, "mu_plan")
        torch.testing.assert_close(logits(stock, tokens), logits(model, tokens), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        "name, norm",
        [("OPT", "model.decoder.final_layer_norm"), ("Qwen2", "model.norm"), ("Roberta", "lm_head.layer_norm")],
    )
    def test_tied_variants_fold_into_the_norm_that_the_readout_reads(self, name, norm, tokens):
        config = mu_config(CONFIGS[name](), output_multiplier=3.0).replace(tie_word_embeddings=True)
        model = build(config.at_width(64)).eval()
        assert model.mu_last_norm == norm
        stock = model.to_standard()
        head = stock.get_output_embeddings()
        assert head.weight is stock.get_input_embeddings().weight and type(head) is nn.Linear
        torch.testing.assert_close(logits(stock, tokens), logits(model, tokens), atol=1e-5, rtol=1e-5)

    def test_a_tied_readout_behind_a_projection_is_refused(self):
        from hf_muscaling.convert.probe import last_norm

        config = mu_config(
            hf.OPTConfig(**NO_FFN, ffn_dim=64, word_embed_proj_dim=16), plan={"word_embed_proj_dim": "infinite"}
        )
        assert last_norm(type(build(config)), config) is None
        with pytest.raises(
            ConfigurationError, match="no norm before it is known: train with tie_word_embeddings=False"
        ):
            build(config.at_width(64)).to_standard()

    def test_held_multipliers_do_not(self):
        base = mu_config(hf.GemmaConfig(**GROUPED, head_dim=8, tie_word_embeddings=False))
        assert build(base).to_standard()
        with pytest.raises(
            ConfigurationError, match="holds model.embed_tokens.scalar_embed_scale at its value at base"
        ):
            build(base.at_width(64)).to_standard()


class TestFolders:
    """Only a μP folder is loaded, and no code from it."""

    def test_stock_and_unknown_folders(self, tmp_path):
        build(hf.MistralConfig(**GROUPED)).save_pretrained(tmp_path / "stock")
        with pytest.raises(ConfigurationError, match="holds a 'mistral' model, not a μP one.*from_config"):
            MuAutoModelForCausalLM.from_pretrained(tmp_path / "stock")
        config = json.loads((tmp_path / "stock" / "config.json").read_text())
        (tmp_path / "stock" / "config.json").write_text(json.dumps(config | {"model_type": "mu_nothing"}))
        with pytest.raises(ConfigurationError, match="has no 'nothing'"):
            MuAutoModelForCausalLM.from_pretrained(tmp_path / "stock")

    def test_written_variants_and_other_objectives(self, tmp_path):
        model = MuAutoModelForCausalLM.from_config(hf.LlamaConfig(**GROUPED), base_width=16)
        assert type(model) is MuLlamaForCausalLM and model.lm_head.multiplier == 0.5
        model.save_pretrained(tmp_path)
        assert type(MuAutoModelForCausalLM.from_pretrained(tmp_path)) is MuLlamaForCausalLM
        with pytest.raises(ConfigurationError, match="has no AutoModelForMaskedLM"):
            MuAutoModelForMaskedLM.from_config(hf.MistralConfig(**GROUPED))
        with pytest.raises(ConfigurationError, match="is a μP config already"):
            MuAutoModelForCausalLM.from_config(model.config, base_width=16)


class TestTraining:
    """A converted config is trained like a written one."""

    def test_train_series(self, tmp_path):
        base = mu_config(hf.MistralConfig(**GROUPED))
        data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8
        args = MuTrainingArguments(output_dir=str(tmp_path), max_steps=2, use_cpu=True, report_to="none")
        runs = list(train_series(base, [32, 64], args, data, progress=False))
        assert [run.width for run in runs] == [32, 64] and runs[0].N < runs[1].N
        loaded = list(tmp_path.rglob("model.safetensors"))
        assert type(MuAutoModelForCausalLM.from_pretrained(loaded[0].parent)).__name__ == "MuMistralForCausalLM"

    def test_groups(self):
        model = build(mu_config(hf.MistralConfig(**GROUPED)).at_width(128))
        assert sorted({g["lr"] for g in MuAdamW(model, lr=1.0).param_groups}) == [0.25, 1.0]

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["mistral", "gemma", "mt5"])
    def test_coordinates(self, name):
        config_class, fields, _ = CONVERTED[name]
        wide = {"vocab_size": 128} | ({"d_model": 64, "d_ff": 128} if name == "mt5" else {"hidden_size": 64})
        config = mu_config(config_class(**{**fields, **wide}))
        if not config.tie_word_embeddings:
            config = config.replace(zero_readout=True)
        check = coordinate_check(config, [64, 128, 256], seeds=2, steps=6, learning_rate=2**-10, tolerance=0.35)
        assert check.passed, str(check)
        assert check.control_worst.slope > 0.7


def test_the_narrow_model_is_of_the_same_design():
    shapes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4}
    config = mu_config(hf.MistralConfig(vocab_size=32000, num_hidden_layers=3, **shapes), base_width=256)
    small = narrow_base(config)
    assert small.is_base and small.num_hidden_layers == 3 and small.head_dim == 32
    assert (small.hidden_size, small.num_key_value_heads, small.num_attention_heads) == (256, 2, 8)
    assert small.vocab_size == 512 and max(small.bos_token_id, small.eos_token_id) < 512


CONFIGS = {
    "Mistral": lambda: hf.MistralConfig(**GROUPED),
    "Qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "GPTNeoX": lambda: hf.GPTNeoXConfig(**TINY, hidden_dropout=0.0, attention_dropout=0.0),
    "OPT": lambda: hf.OPTConfig(**NO_FFN, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0),
    "Roberta": lambda: hf.RobertaConfig(**TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "Bart": lambda: hf.BartConfig(**BART),
}


class TestLosses:
    """MuTrainer reports the loss of the model's objective; without the shift a causal model would learn to copy."""

    @pytest.mark.parametrize("name", CONFIGS)
    def test_trainer_reports_what_the_model_computes(self, name, tmp_path):
        config = mu_config(CONFIGS[name]())
        model = build(config if name in ("Bart", "OPT") else config.replace(initializer_range=0.5))
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, 60, (8, 12), generator=generator)
        labels = ids.roll(1, 0) if name == "Bart" else ids.clone()
        if name == "Roberta":
            labels[:, ::3] = -100
        data = [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]
        with torch.no_grad():
            expected = model.eval()(input_ids=ids, labels=labels).loss.item()
            unshifted = nn.functional.cross_entropy(
                model(input_ids=ids, **({"labels": labels} if name == "Bart" else {})).logits.flatten(0, 1),
                labels.flatten(),
            ).item()
        causal = name not in ("Roberta", "Bart")
        assert (abs(unshifted - expected) > 1e-3) is causal  # the two losses can be told apart
        args = MuTrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            per_device_eval_batch_size=3, logging_steps=1, use_cpu=True, report_to="none", disable_tqdm=True,
            save_strategy="no",
        )  # fmt: skip
        trainer = MuTrainer(model, args, train_dataset=data, eval_dataset=data)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
        trainer.train()
        assert trainer.curve[0]["loss"] == pytest.approx(expected, rel=1e-5)

    def test_a_classifier_keeps_its_own_loss(self):
        objectives = {
            hf.MistralForSequenceClassification: None, hf.MistralForCausalLM: "causal",
            hf.RobertaForMaskedLM: "masked", hf.BartForConditionalGeneration: "seq2seq",
        }  # fmt: skip
        assert {stock: mu_variant(stock).mu_objective for stock in objectives} == objectives


def test_commands_know_a_saved_variant_in_a_fresh_process(tmp_path):
    config = mu_config(hf.Qwen2Config(**GROUPED, tie_word_embeddings=False), base_width=16)
    build(config).save_pretrained(tmp_path / "saved")
    muscaling = [sys.executable, "-c", "import sys; from hf_muscaling.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*muscaling, "export", str(tmp_path / "saved"), "--output", str(tmp_path / "stock")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["model_type"] == "qwen2"


def test_likely_mistakes_are_named(tmp_path):
    stock = hf.MistralConfig(**GROUPED)
    with pytest.raises(ConfigurationError, match=r"train_series needs a μP config, got MistralConfig: .*mu_config"):
        train_series(stock, [32, 64], None, None)
    blocks = PackedBlocks(np.full((4, 8), 200, dtype=np.uint16))
    args = MuTrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none")
    with pytest.raises(ConfigurationError, match="vocab_size=64 does not hold token 200 of the training set"):
        train_series(mu_config(stock), [32, 64], args, blocks, progress=False)
    with pytest.raises(
        ConfigurationError, match="takes a model class of transformers, got MistralConfig; see mu_config"
    ):
        mu_variant(stock)
    with pytest.raises(ConfigurationError, match="MuAdamW takes the μP model itself, got generator|takes the μP model"):
        MuAdamW(nn.Linear(2, 2).parameters())
    with pytest.raises(ConfigurationError, match="coordinate_check needs a μP config, got .*pass model.config"):
        coordinate_check(build(mu_config(stock)))
