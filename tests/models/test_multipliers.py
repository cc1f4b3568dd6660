"""The readout's τ/r and the attention's 1/d."""

import pytest
import torch
from torch import nn

from hf_muscaling import MuReadout
from tests.models.helpers import head, inputs, logits


class TestMultipliers:
    """The readout's τ/r and the attention's 1/d."""

    def test_readout_multiplies_in_training_and_in_evaluation(self, architecture, tied, tokens):
        config = architecture.base(tie_word_embeddings=tied, output_multiplier=5.0).at_width(128)
        model = architecture.model(config)
        # T5 itself divides the decoder's output by √d before a tied head; in all, the head sees τ/(r·√d_base)
        own = 0.5 if architecture.name == "t5" and tied else 1.0
        assert isinstance(head(model), MuReadout) and head(model).multiplier == 1.25 / own
        assert f"multiplier={1.25 / own:g}" in repr(model)
        for training in (True, False):
            model.train(training)
            seen = {}
            hook = head(model).register_forward_hook(lambda _m, given, out, seen=seen: seen.update(x=given[0], y=out))
            with torch.no_grad():
                out = model(**inputs(model, tokens))
            hook.remove()
            plain = nn.functional.linear(seen["x"], head(model).weight)
            torch.testing.assert_close(out.logits, 1.25 / own * plain, rtol=1e-4, atol=1e-4)
            assert (out.logits - plain).abs().max() > 1e-3  # the multiplier is seen by this test

    @pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
    def test_attention_is_one_over_d_along_the_head_size(self, request, name):
        architecture = request.getfixturevalue(name)
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

    def test_attention_of_t5_is_one_over_d_along_the_head_size(self, t5):
        config = t5.base(width=64, heads=4).at_width(128).replace(d_kv=64, num_heads=2)
        # 1/√d is in T5's query initialisation, so the scaling carries the other 1/√d relative to the base head size
        assert {m.scaling for m in t5.model(config)._attention_modules()} == {0.5}
        assert {m.scaling for m in t5.model(config.replace(parametrization="sp"))._attention_modules()} == {1.0}

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
        expected = 0.5 if architecture.name == "t5" and tied else 0.25
        assert isinstance(head(model), MuReadout) and head(model).multiplier == expected
        assert model.config.vocab_size == 72 and head(model).out_features == 72
        assert (model.get_input_embeddings().weight is head(model).weight) is tied
        torch.testing.assert_close(logits(model, tokens)[..., :64], before)
        assert set(model.mu_table()) == {name for name, _ in model.named_parameters()}
