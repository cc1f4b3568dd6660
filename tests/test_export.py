"""Export: a μP model folded into its stock class, or a Llama written as Granite, gives the same logits."""

import copy
import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import hf_muscaling
from hf_muscaling import MuLlamaForCausalLM, MuLlamaModel, cli, export, models
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.export import export_folder, to_granite
from hf_muscaling.models import MuBranch, MuBranchConv1D

PLAIN = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}


def sharpened(model, scale=0.08, seed=11):
    """Draw every parameter anew, larger than at initialisation: no bias, query or gain hides a multiplier."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.dim() == 1:
                parameter.copy_(0.3 * noise if name.endswith("bias") else 1 + 0.3 * noise)
            else:
                parameter.copy_(scale * noise)
    return model.eval()


MODELS = {
    "gpt2": (hf_muscaling.MuGPT2Config, hf_muscaling.MuGPT2LMHeadModel),
    "llama": (hf_muscaling.MuLlamaConfig, hf_muscaling.MuLlamaForCausalLM),
    "bert": (hf_muscaling.MuBertConfig, hf_muscaling.MuBertForMaskedLM),
    "t5": (hf_muscaling.MuT5Config, hf_muscaling.MuT5ForConditionalGeneration),
}


def exported_config(kind, tied, **settings):
    """Return a config whose multipliers are no powers of two: τ = 4 at r = 3, and heads of 12 where the base has 4."""
    shapes = {"num_attention_heads": 8, "num_hidden_layers": 2, "hidden_size": 32}
    if kind == "llama":
        shapes |= {"num_key_value_heads": 4, "intermediate_size": 88, "head_dim": 4}
    elif kind == "bert":
        shapes |= {"intermediate_size": 128}
    elif kind == "t5":
        shapes |= {"d_ff": 80, "d_kv": 4, "num_decoder_layers": 2}
    if kind != "t5":
        shapes |= {"max_position_embeddings": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    settings = {"vocab_size": 64, "output_multiplier": 4.0, "tie_word_embeddings": tied} | ends | settings
    config = MODELS[kind][0](**settings).replace(**shapes).at_width(96)
    wider = {"llama": {"num_key_value_heads": 4, "head_dim": 12}, "t5": {"d_kv": 12}}.get(kind, {})
    return config.replace(num_attention_heads=8, **wider)


def exported_model(kind, tied, model_class=None, **settings):
    return sharpened((model_class or MODELS[kind][1])(exported_config(kind, tied, **settings)))


PRETRAINING = {model.__name__ for _, model in MODELS.values()}
HEADS = sorted(n for n in models.__all__ if n.endswith("Model") or "For" in n and n not in PRETRAINING)


def outputs(model, inputs):
    with torch.no_grad():
        return [x for x in model(**inputs).to_tuple() if isinstance(x, torch.Tensor)]


@pytest.fixture(params=list(MODELS))
def kind(request):
    return request.param


def inputs_of(model, tokens):
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens[:, :9]} if model.config.is_encoder_decoder else {})


def logits(model, tokens):
    with torch.no_grad():
        return model(**inputs_of(model, tokens)).logits


def difference(a, b, tokens):
    return (logits(a, tokens) - logits(b, tokens)).abs().max().item()


@pytest.fixture
def model(kind, tied):
    return exported_model(kind, tied)


class TestStandard:
    """`to_standard`: the stock class, the same function."""

    def test_logits_equal_and_the_class_is_stock(self, model, tokens):
        stock = model.to_standard()
        assert type(stock).__module__.startswith("transformers.models.")
        assert type(stock.config).__module__.startswith("transformers.models.")
        assert not any(type(m).__module__.startswith("hf_muscaling") for m in stock.modules())
        assert logits(model, tokens).std() > 0.1
        assert difference(model, stock, tokens) <= 1e-5

    def test_the_multipliers_matter_here(self, model, tokens):
        """Negative controls: each multiplier left out, the logits differ."""
        unfolded = type(model.to_standard())(model.config.to_stock_config()).eval()
        unfolded.load_state_dict(model.state_dict())
        assert difference(model, unfolded, tokens) > 0.1
        head_only, attention_only = copy.deepcopy(model), copy.deepcopy(model)
        for attention in attention_only._attention_modules():
            attention.scaling *= 2.0
        head_only.get_output_embeddings().multiplier = 1.0
        for other in (head_only, attention_only):
            assert difference(model, other, tokens) > 1e-2
            assert difference(other, other.to_standard(), tokens) <= 1e-5
            assert difference(model, other.to_standard(), tokens) > 1e-2

    def test_the_original_is_untouched_and_shares_nothing(self, model, tokens):
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        expected = logits(model, tokens)
        stock = model.to_standard()
        assert torch.equal(torch.get_rng_state(), state)  # no random draw either
        with torch.no_grad():
            for parameter in stock.parameters():
                parameter.zero_()
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert torch.equal(logits(model, tokens), expected)

    def test_ties_stay_and_a_tied_weight_is_not_scaled(self, model, tied):
        stock = model.to_standard()
        embedding, head = stock.get_input_embeddings().weight, stock.get_output_embeddings().weight
        assert (embedding is head) is tied
        assert torch.equal(embedding, model.get_input_embeddings().weight)
        stock.tie_weights()
        assert (stock.get_input_embeddings().weight is stock.get_output_embeddings().weight) is tied
        theirs = dict(stock.named_parameters(remove_duplicate=False))
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, theirs[n])}
        queries = {n for n in changed if "attn" in n or "Attention" in n or "attention" in n}
        expected = model.mu_last_norm if tied else model.get_output_embeddings()
        assert queries and changed - queries == {
            n for n, p in model.named_parameters()
            if (tied and n.rpartition(".")[0] == expected) or (not tied and p is expected.weight)
        }  # fmt: skip

    @pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
    def test_generate_writes_the_same_tokens(self, kind, tied, tokens):
        model = sharpened(exported_model(kind, tied), scale=0.3)  # so that it does not repeat one token
        stock = model.to_standard()
        mask = torch.ones_like(tokens)
        written = stock.generate(tokens, attention_mask=mask, **PLAIN)
        assert torch.equal(written, model.generate(tokens, attention_mask=mask, **PLAIN))
        assert written[:, -8:].unique().numel() > 4

    @pytest.mark.parametrize("kind", ["gpt2", "t5"])
    def test_generation_settings_training_mode_and_frozen_weights_are_kept(self, kind):
        model = exported_model(kind, True)
        model.generation_config.max_length = 77
        model.train()
        next(model.parameters()).requires_grad_(False)
        stock = model.to_standard()
        assert stock.generation_config.max_length == 77 and stock.training
        assert [p.requires_grad for p in stock.parameters()] == [p.requires_grad for p in model.parameters()]
        stock.generation_config.max_length = 5
        assert model.generation_config.max_length == 77

    def test_attention_implementation_is_kept(self, kind, tokens):
        model = exported_model(kind, True)
        model.set_attn_implementation("eager")
        stock = model.to_standard()
        assert stock.config._attn_implementation == "eager"
        assert difference(model, stock, tokens) <= 1e-5

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_dtype(self, model, tokens, dtype):
        model.to(dtype)
        stock = model.to_standard()
        assert stock.dtype == stock.config.dtype == dtype
        ours, theirs = (dict(m.named_parameters(remove_duplicate=False)) for m in (model, stock))
        assert {k: p.dtype for k, p in theirs.items()} == {k: p.dtype for k, p in ours.items()}
        kept, copied = (dict(m.named_buffers()) for m in (model, stock))
        assert {k: v.dtype for k, v in kept.items()} == {k: v.dtype for k, v in copied.items()}
        tolerance = {torch.bfloat16: 0.1, torch.float64: 1e-12}[dtype] * logits(model, tokens).abs().max().item()
        assert difference(model, stock, tokens) <= tolerance

    def test_meta(self, kind, tied):
        with torch.device("meta"):
            model = MODELS[kind][1](exported_config(kind, tied))
        stock = model.to_standard()
        assert {p.device.type for p in stock.parameters()} == {"meta"}
        assert (stock.get_input_embeddings().weight is stock.get_output_embeddings().weight) is tied

    def test_standard_parametrisation_changes_no_weight(self, kind, tied):
        model = exported_model(kind, tied, parametrization="sp", output_multiplier=1.0)
        stock = model.to_standard()
        assert all(torch.equal(v, stock.state_dict()[k]) for k, v in model.state_dict().items())

    def test_plain_transformers_in_another_process(self, tokens, tmp_path):
        """Saved, then loaded by a process that never imports this package; it writes the logits it found."""
        saved = {f"{kind}-{tied}": exported_model(kind, tied) for kind in MODELS for tied in (True, False)}
        for name, model in saved.items():
            model.to_standard().save_pretrained(tmp_path / name)
        torch.save(tokens, tmp_path / "tokens.pt")
        program = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
for folder in sorted(p for p in Path(sys.argv[1]).iterdir() if p.is_dir()):
    auto = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}.get(folder.name.split("-")[0], AutoModelForCausalLM)
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    tokens = torch.load(folder.parent / "tokens.pt")
    more = {"decoder_input_ids": tokens[:, :9]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        torch.save(model.eval()(tokens, **more).logits, f"{folder}.pt")
assert not any(name.startswith("hf_muscaling") for name in sys.modules)
"""  # noqa: E501
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, text=True)
        for name, model in saved.items():
            assert (torch.load(tmp_path / f"{name}.pt") - logits(model, tokens)).abs().max() <= 1e-5
            written = json.loads((tmp_path / name / "config.json").read_text())
            assert written["model_type"] == name.partition("-")[0]
            assert not any("mup" in key or key in ("parametrization", "output_multiplier") for key in written)
            assert {p.suffix for p in (tmp_path / name).iterdir()} == {".json", ".safetensors"}


class TestVariants:
    """Options of single architectures."""

    def test_llama_biases_are_folded_too(self, tokens):
        model = exported_model("llama", True, attention_bias=True, mlp_bias=True)
        assert difference(model, model.to_standard(), tokens) <= 1e-5

    def test_gpt2_per_layer_scaling(self, tokens):
        model = exported_model("gpt2", True, scale_attn_by_inverse_layer_idx=True)
        assert difference(model, model.to_standard(), tokens) <= 1e-5

    def test_gpt2_cross_attention(self, tokens):
        model = exported_model("gpt2", False, add_cross_attention=True)
        assert model.transformer.h[0].crossattention.scaling == pytest.approx(0.5 * 4 / 12)
        stock = model.to_standard()
        memory = torch.randn(4, 7, 96, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ours = model(tokens, encoder_hidden_states=memory).logits
            theirs = stock(tokens, encoder_hidden_states=memory).logits
            forgotten = copy.deepcopy(stock)
            for block in forgotten.transformer.h:
                block.crossattention.q_attn.weight.mul_(2)
            wrong = forgotten(tokens, encoder_hidden_states=memory).logits
        assert (ours - theirs).abs().max() <= 1e-5 < 1e-3 < (ours - wrong).abs().max()

    def test_residual_branches_of_the_depth_table(self, kind, tied, tokens):
        settings = {"mlp_bias": True} if kind == "llama" else {}
        config = exported_config(kind, tied, depth_parametrization="completep", **settings)
        config = config.replace(**dict.fromkeys(config.mu_depth_fields, 3))
        model = sharpened(MODELS[kind][1](config))
        branches = [m for m in model.modules() if isinstance(m, (MuBranch, MuBranchConv1D))]
        assert branches and {m.multiplier for m in branches} == {2 / 3}
        stock = model.to_standard()
        assert difference(model, stock, tokens) <= 1e-5
        with torch.no_grad():
            for module in branches:
                module.multiplier = 1.0
        assert difference(model, stock, tokens) > 1e-2

    @pytest.mark.parametrize("name", HEADS)
    def test_other_heads(self, name, tokens):
        kind = {"MuGP": "gpt2", "MuLl": "llama", "MuBe": "bert", "MuT5": "t5"}[name[:4]]
        model = exported_model(kind, True, getattr(models, name), num_labels=5)
        stock = model.to_standard()
        assert type(stock).__name__ == name.removeprefix("Mu")
        tokens = torch.cat([tokens.clamp(min=1), torch.zeros_like(tokens[:, :1])], 1)  # T5's classifier reads at eos
        needs_decoder = kind == "t5" and name == "MuT5Model"
        inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if needs_decoder else {})
        pairs = outputs(model, inputs), outputs(stock, inputs)
        assert len(pairs[0]) == len(pairs[1]) >= 1
        for ours, theirs in zip(*pairs, strict=True):
            assert (ours - theirs).abs().max() <= 1e-5
        unfolded = type(stock)(stock.config).eval()
        unfolded.load_state_dict(model.state_dict())
        assert max((a - b).abs().max() for a, b in zip(pairs[0], outputs(unfolded, inputs), strict=True)) > 1e-2

    def test_after_a_resize(self, kind, tied, tokens):
        model = exported_model(kind, tied)
        model.resize_token_embeddings(80)
        stock = model.to_standard()
        assert stock.config.vocab_size == 80 and difference(model, stock, tokens) <= 1e-5


class ScaledLinear(nn.Linear):
    """A layer whose whole output is multiplied, bias included."""

    multiplier = 0.25

    def forward(self, input):
        return super().forward(input) * self.multiplier


class ScaledEmbedding(nn.Embedding):
    multiplier = 4.0

    def forward(self, input):
        return super().forward(input) * self.multiplier


class Shifted(nn.Linear):
    multiplier = 0.25

    def forward(self, input):
        return super().forward(input) * self.multiplier + 0.5


class Weightless(nn.Identity):
    multiplier = 0.25


def recast(module, cls):
    module.__class__ = cls
    return module


class TestAnyMultiplier:
    """A module with a multiplier is folded into its own weight if that gives what it returns, else it is named."""

    @pytest.mark.parametrize("kind", ["gpt2", "bert", "t5"])
    def test_a_tied_embedding_is_refused(self, kind):
        model = exported_model(kind, True)
        recast(model.get_input_embeddings(), ScaledEmbedding)
        with pytest.raises(ConfigurationError, match=r"multiplier 4 of .*(wte|word_embeddings|shared) .* is tied"):
            model.to_standard()

    def test_an_untied_embedding(self, tokens):
        model = exported_model("llama", False)
        recast(model.model.embed_tokens, ScaledEmbedding)
        assert difference(model, model.to_standard(), tokens) <= 1e-5

    @pytest.mark.parametrize("where", ["gate_proj", "act_fn"])
    def test_what_no_weight_can_take_is_named(self, where):
        model = exported_model("llama", False)
        mlp = model.model.layers[1].mlp
        setattr(mlp, where, Weightless() if where == "act_fn" else recast(getattr(mlp, where), Shifted))
        reason = "has no weight" if where == "act_fn" else "does not give"
        with pytest.raises(ConfigurationError, match=rf"0\.25 of model\.layers\.1\.mlp\.{where} .*{reason}"):
            model.to_standard()

    def test_what_stock_lacks_is_named(self):
        model = exported_model("llama", False)
        model.model.extra = Weightless()
        with pytest.raises(ConfigurationError, match=r"0\.25 of model\.extra .*LlamaForCausalLM has no module"):
            model.to_standard()
        model.model.extra = ScaledLinear(3, 3)
        with pytest.raises(ConfigurationError, match=r"model\.extra\.bias is in only one of MuLlamaForCausalLM"):
            model.to_standard()

    def test_a_norm_that_does_not_scale_with_its_weight(self):
        class OffsetNorm(nn.LayerNorm):  # as Gemma's, 1 + weight
            def forward(self, input):
                return torch.rms_norm(input, self.normalized_shape) * (1 + self.weight)

        model = exported_model("llama", True)
        norm = OffsetNorm(96, bias=False)
        model.model.norm = norm
        with pytest.raises(ConfigurationError, match=r"lm_head .* model\.norm does not scale"):
            model.to_standard()

    def test_queries_that_no_pattern_names(self):
        class Forgetful(MuLlamaForCausalLM):
            mu_query = {}

        model = exported_model("llama", True)
        model.__class__ = Forgetful
        with pytest.raises(ConfigurationError, match=r"model\.layers\.0\.self_attn scales attention .* 0 of its"):
            model.to_standard()


class TestGranite:
    """A μP Llama is a Granite config: no weight changes."""

    def test_logits_and_weights(self, tied, tokens, tmp_path):
        model = exported_model("llama", tied, attention_bias=True)
        granite = model.to_granite()
        assert type(granite) is transformers.GraniteForCausalLM
        assert all(torch.equal(v, granite.state_dict()[k]) for k, v in model.state_dict().items())
        assert granite.config.attention_multiplier == pytest.approx(0.5 * 4 / 12)  # 1/d, equal to 1/√4 at d = 4
        assert granite.config.logits_scaling == pytest.approx(3 / 4)
        assert difference(model, granite, tokens) <= 1e-5
        granite.save_pretrained(tmp_path)
        again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is transformers.GraniteForCausalLM and not info["missing_keys"]
        assert difference(model, again, tokens) <= 1e-5
        assert (again.get_input_embeddings().weight is again.lm_head.weight) is tied
        mask = torch.ones_like(tokens)
        assert torch.equal(
            model.generate(tokens, attention_mask=mask, **PLAIN), again.generate(tokens, attention_mask=mask, **PLAIN)
        )

    @pytest.mark.parametrize("field", ["attention_multiplier", "logits_scaling"])
    def test_each_field_matters(self, tokens, field):
        model = exported_model("llama", True)
        granite = model.to_granite()
        setattr(granite.config, field, 1.0)
        other = transformers.GraniteForCausalLM(granite.config).eval()
        other.load_state_dict(granite.state_dict())
        assert difference(model, other, tokens) > 1e-2

    def test_residual_multiplier(self, tokens):
        config = exported_config("llama", False, mlp_bias=True, depth_parametrization="completep")
        model = sharpened(MuLlamaForCausalLM(config.replace(num_hidden_layers=4)))
        granite = model.to_granite()
        assert granite.config.residual_multiplier == 0.5
        assert all(torch.equal(v, granite.state_dict()[k]) for k, v in model.state_dict().items())
        assert difference(model, granite, tokens) <= 1e-5
        model.model.layers[0].mlp.down_proj.multiplier = 0.25  # now they differ: folded instead
        granite = model.to_granite()
        assert granite.config.residual_multiplier == 1.0
        assert difference(model, granite, tokens) <= 1e-5

    def test_without_a_head(self, tokens):
        bare = exported_model("llama", False, MuLlamaModel)
        with torch.no_grad():
            ours, theirs = bare(tokens).last_hidden_state, bare.to_granite()(tokens).last_hidden_state
        assert (ours - theirs).abs().max() <= 1e-5

    def test_only_llama(self):
        model = exported_model("gpt2", True)
        assert not hasattr(model, "to_granite")
        with pytest.raises(ConfigurationError, match="got MuGPT2LMHeadModel; use to_standard"):
            to_granite(model)

    def test_scalings_that_differ_between_layers(self):
        model = exported_model("llama", True)
        model.model.layers[0].self_attn.scaling = 0.3
        with pytest.raises(ConfigurationError, match=r"one attention_multiplier .* has \[0\.16\d+, 0\.3\]"):
            model.to_granite()


class TestCommand:
    """`muscaling export FOLDER --output DIR`."""

    @pytest.mark.parametrize("form, kind", [("standard", "llama"), ("granite", "granite")])
    def test_exports_model_and_tokenizer(self, tied, tokens, tmp_path, capsys, form, kind):
        source, target = tmp_path / "mu", tmp_path / "out" / "stock"
        model = exported_model("llama", tied)
        model.save_pretrained(source)
        (source / "tokenizer.json").write_text('{"version": "1.0"}')
        (source / "optimizer.pt").write_text("a pickle that stays behind")
        assert cli.main(["export", str(source), "--output", str(target), "--format", form]) == 0
        assert "differ from" in capsys.readouterr().out
        exported = transformers.AutoModelForCausalLM.from_pretrained(target)
        assert exported.config.model_type == kind and difference(model, exported, tokens) <= 1e-5
        assert {p.name for p in target.iterdir()} == {
            "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"
        }  # fmt: skip
        assert (target / "tokenizer.json").read_text() == '{"version": "1.0"}'

    def test_a_model_without_a_head_keeps_its_class(self, tmp_path):
        exported_model("llama", False, MuLlamaModel).save_pretrained(tmp_path / "mu")
        assert export_folder(tmp_path / "mu", tmp_path / "out") <= 1e-5
        assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaModel"]

    def test_a_difference_writes_nothing(self, tmp_path, monkeypatch):
        exported_model("llama", False).save_pretrained(tmp_path / "mu")
        monkeypatch.setattr(export, "_fold_attention", lambda model, stock: None)
        with pytest.raises(
            ConfigurationError, match="LlamaForCausalLM differs from MuLlamaForCausalLM by .* nothing was"
        ):
            export_folder(tmp_path / "mu", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_bad_input_is_named(self, tmp_path, capsys):
        def refused(*arguments):
            assert cli.main(["export", *map(str, arguments)]) == 2
            return capsys.readouterr().err

        good, stock, empty, full = (tmp_path / n for n in ("good", "stock", "empty", "full"))
        exported_model("llama", False).save_pretrained(good)
        exported_model("llama", False).to_standard().save_pretrained(stock)
        for folder in (empty, full):
            folder.mkdir()
        (full / "note").write_text("mine")
        new = ("--output", tmp_path / "new")
        assert f"{tmp_path / 'none'} is not the folder of a saved model" in refused(tmp_path / "none", *new)
        assert f"{empty} is not the folder of a saved model" in refused(empty, *new)
        assert "holds a LlamaConfig, not a μP model" in refused(stock, *new)
        assert "exists and is not an empty folder" in refused(good, "--output", full)
        (empty / "config.json").write_text("{not json")
        assert "is not a config that can be read" in refused(empty, *new)
        (good / "model.safetensors").rename(good / "moved.bin")
        assert "no .safetensors file" in refused(good, *new)
        assert not (tmp_path / "new").exists() and (full / "note").read_text() == "mine"

    def test_an_incomplete_checkpoint_is_refused(self, tmp_path):
        exported_model("llama", False).save_pretrained(tmp_path / "mu")
        tensors = load_file(tmp_path / "mu" / "model.safetensors")
        del tensors["model.layers.0.self_attn.q_proj.weight"]
        save_file(tensors, tmp_path / "mu" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigurationError, match=r"does not load completely .*layers\.0\.self_attn\.q_proj"):
            export_folder(tmp_path / "mu", tmp_path / "out")

    def test_gpt2_has_no_granite_form(self, tmp_path):
        exported_model("gpt2", True).save_pretrained(tmp_path / "mu")
        with pytest.raises(ConfigurationError, match="Granite form"):
            export_folder(tmp_path / "mu", tmp_path / "out", "granite")
        with pytest.raises(ConfigurationError, match="format='gguf' is unknown"):
            export_folder(tmp_path / "mu", tmp_path / "out", "gguf")
