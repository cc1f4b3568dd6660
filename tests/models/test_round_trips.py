"""The same model after every round trip: saved, loaded, copied, compiled, cast, from an incomplete checkpoint."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from hf_muscaling import MuLlamaForCausalLM
from hf_muscaling.models import pretraining_class
from tests.models.helpers import expected_std, head, inputs, last_hidden, logits


class TestRoundTrips:
    """The same logits whatever happens to the model."""

    @pytest.fixture
    def model(self, architecture, tied):
        config = architecture.base(tie_word_embeddings=tied, output_multiplier=3.0, initializer_range=0.1)
        return architecture.model(config.at_width(64)).eval()

    def test_save_and_load(self, model, tokens, tmp_path):
        model.save_pretrained(tmp_path)
        assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
        for loader in (type(model), pretraining_class(model.config)):
            again = loader.from_pretrained(tmp_path)
            assert type(again) is type(model) and again.config.mup_base == model.config.mup_base
            assert torch.equal(logits(again, tokens), logits(model, tokens))
            assert again.mu_table() == model.mu_table()
        assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
        bare = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(bare(**inputs(bare, tokens)).last_hidden_state, last_hidden(model, tokens))

    def test_auto_classes_build_from_config(self, model):
        assert type(pretraining_class(model.config).from_config(model.config)) is type(model)

    def test_a_stock_class_does_not_load_it_in_silence(self, model, architecture, tokens, tmp_path, caplog):
        model.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["model_type"] == f"mu_{architecture.name}"
        stock = architecture.stock_class
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

    def test_generate_uses_the_multiplier(self, model, architecture, tokens):
        if not architecture.generates:
            pytest.skip("BERT writes no text")
        prompt = tokens[:, :4]
        plain = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        written = model.generate(prompt, max_new_tokens=6, **plain)
        encoder = {"input_ids": prompt} if model.config.is_encoder_decoder else {}
        expected = torch.zeros_like(prompt[:, :1]) if encoder else prompt

        def next_logits(so_far):
            with torch.no_grad():
                given = encoder | {"decoder_input_ids": so_far} if encoder else {"input_ids": so_far}
                return model(**given).logits[:, -1]

        start = expected
        for _ in range(6):
            expected = torch.cat([expected, next_logits(expected).argmax(-1, keepdim=True)], dim=1)
        assert torch.equal(written, expected)
        plain |= {"output_logits": True, "return_dict_in_generate": True}
        scores = model.generate(prompt, max_new_tokens=1, **plain).logits[0]
        torch.testing.assert_close(scores, next_logits(start))

    def test_compile_without_graph_breaks(self, model, architecture, tokens):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        given = {"input_ids": tokens, "labels": tokens} | ({"use_cache": False} if architecture.generates else {})
        with torch.no_grad():
            out, expected = compiled(**given), model(**given)
        torch.testing.assert_close(out.logits, expected.logits)
        torch.testing.assert_close(out.loss, expected.loss)

    @pytest.mark.slow
    def test_compile_with_inductor(self, architecture, tokens):
        torch._dynamo.reset()
        model = architecture.model(architecture.base(layers=1).at_width(64)).eval()
        compiled = torch.compile(model, fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(
                compiled(**inputs(model, tokens)).logits, logits(model, tokens), atol=1e-5, rtol=1e-4
            )

    def test_bfloat16(self, model, architecture, tokens, tmp_path):
        cast = copy.deepcopy(model).to(torch.bfloat16)
        assert head(cast).weight.dtype == torch.bfloat16 and head(cast).multiplier == head(model).multiplier
        torch.testing.assert_close(logits(cast, tokens).float(), logits(model, tokens), atol=0.05, rtol=0.1)
        cast.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert all(torch.equal(v, cast.state_dict()[k]) for k, v in again.state_dict().items())
        assert head(again).multiplier == head(model).multiplier
        # not bit for bit: a cast rounds Llama's rotary buffer too, loading computes it in fp32
        torch.testing.assert_close(logits(again, tokens).float(), logits(model, tokens), atol=0.05, rtol=0.1)
        born = pretraining_class(model.config).from_config(model.config, dtype=torch.bfloat16)
        assert {p.dtype for p in born.parameters()} == {torch.bfloat16}
        assert head(born).multiplier == head(model).multiplier

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
            ("bert", "bert.encoder.layer.1.attention.output.dense.weight"),
            ("bert", "cls.predictions.decoder.weight"),
            ("bert", "bert.embeddings.position_embeddings.weight"),
            ("t5", "decoder.block.1.layer.1.EncDecAttention.q.weight"),
            ("t5", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
            ("t5", "lm_head.weight"),
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
                assert torch.equal(value, model.state_dict()[key]), key
        value = loaded.get_parameter(lacks)
        if value.dim() == 1:
            assert torch.equal(value, torch.full_like(value, float(lacks.endswith("weight"))))
        else:
            few = value.numel() < 1000
            assert value.std().item() == pytest.approx(expected_std(loaded, lacks), rel=0.25 if few else 0.05)

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
