"""N, D and C against closed forms and nanoLM's published tables."""

import math

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from hf_muscaling import MuGPT2Config, MuLlamaConfig, MuT5Config, count_parameters, training_flops
from hf_muscaling.counting import cost_ratio, encoder_decoder_step_flops, meta_model, step_flops
from hf_muscaling.errors import ConfigurationError

WIDTHS = (128, 256, 384, 512, 640, 768, 896, 1024)
LARGE_WIDTHS = (256, 384, 512, 640, 768, 896, 1024, 2048, 8192)


def gpt(width, layers=12, vocabulary=50304, positions=1024):
    return MuGPT2Config(vocab_size=vocabulary, n_embd=width, n_head=width // 64, n_layer=layers, n_positions=positions)


def llama(width, layers=12, tied=True):
    return MuLlamaConfig(
        vocab_size=50304, hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width,
        num_hidden_layers=layers, tie_word_embeddings=tied,
    )  # fmt: skip


def test_total_is_the_sum_of_the_parameters_and_a_tie_counts_once(architecture, tied):
    config = architecture.base(tie_word_embeddings=tied).at_width(64)
    model = architecture.model(config)
    total = sum(p.numel() for p in set(model.parameters()))
    assert count_parameters(config) == count_parameters(model) == total
    other = count_parameters(config.replace(tie_word_embeddings=not tied))
    assert other - total == (64 * 64 if tied else -64 * 64)


def test_conventions_of_gpt2(gpt2):
    config = gpt2.base(layers=3, tie_word_embeddings=False)
    w, vocabulary, positions, layers = 32, 64, 64, 3
    body = layers * (12 * w * w + 13 * w) + 2 * w
    assert count_parameters(config, "non_embedding") == body
    assert count_parameters(config, "without_positions") == body + 2 * vocabulary * w
    assert count_parameters(config, "total") == body + 2 * vocabulary * w + positions * w


def test_conventions_of_llama_with_grouped_heads(llama):
    config = llama.base(width=64, heads=4, layers=3, tie_word_embeddings=True)
    w, f, kv = 64, 176, 32
    body = 3 * (2 * w * w + 2 * w * kv + 3 * w * f + 2 * w) + w
    assert count_parameters(config, "non_embedding") == body
    assert count_parameters(config) == count_parameters(config, "without_positions") == body + 64 * w


def test_a_plain_model_can_be_counted_too():
    config = BertConfig(vocab_size=50, hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64)
    model = BertForMaskedLM(config)
    assert count_parameters(model, "total") - count_parameters(model, "without_positions") == 512 * 32


def as_printed(value, digits):
    """Return a number with so many decimals, rounded and cut: nanoLM's tables do the one or the other."""
    return {f"{value:.{digits}f}", f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"}


@pytest.mark.parametrize(
    "width, millions",
    zip(WIDTHS, ["8.82", "22.36", "40.61", "63.59", "91.28", "123.6", "160.8", "202.67"], strict=True),
)
def test_nanolm_gpt_with_12_layers(width, millions):
    """Every printed digit of Table 3, but for width 896: 160.9 is printed where V·w + 12·l·w² + norms is 160.82."""
    N = count_parameters(gpt(width), "without_positions") / 1e6
    assert millions in as_printed(N, len(millions.partition(".")[2]))


@pytest.mark.parametrize(
    "width, millions",
    [(128, "9.59"), (256, "25.47"), (384, "47.64"), (512, "76.10"), (640, "110.85"), (768, "151.9"), (1024, "252.86")],
)
def test_nanolm_llama_with_12_layers_a_tied_head_and_an_ffn_of_four_widths(width, millions):
    assert f"{count_parameters(llama(width)) / 1e6:.{len(millions.partition('.')[2])}f}" == millions


@pytest.mark.parametrize(
    "width, billions",
    zip(LARGE_WIDTHS, ["0.038", "0.076", "0.126", "0.189", "0.265", "0.353", "0.454", "1.714", "26.185"], strict=True),
)
def test_nanolm_gpt_with_32_layers(width, billions):
    assert billions in as_printed(count_parameters(gpt(width, 32), "without_positions") / 1e9, 3)  # all are cut


@pytest.mark.parametrize(
    "width, billions",
    zip(LARGE_WIDTHS, ["0.077", "0.153", "0.254", "0.381", "0.532", "0.709", "0.911", "3.432", "52.385"], strict=True),
)
def test_nanolm_gpt_with_64_layers_counts_positions_and_a_vocabulary_of_100256(width, billions):
    config = gpt(width, 64, vocabulary=100256, positions=2048)
    assert f"{count_parameters(config, 'total') / 1e9:.3f}" == billions


@pytest.mark.parametrize(
    "width, millions",
    [
        (128, "26.46"),
        (256, "67.03"),
        (384, "121.75"),
        (512, "190.63"),
        (640, "273.66"),
        (768, "370.8"),
        (1024, "607.70"),
    ],
)
def test_nanolm_t5_has_a_gated_ffn_three_vocabularies_and_biased_norms(width, millions):
    """What transformers' T5 v1.1 lacks of it: the decoder's own embedding, 62 norm biases and a bias on the logits.

    Inferred from the printed numbers (the paper names no settings), which leave no other term of this size.
    """
    config = MuT5Config(
        vocab_size=50304, d_model=width, d_ff=4 * width, num_heads=width // 64, d_kv=64, num_layers=12,
        num_decoder_layers=12, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    norms = 12 * 2 + 12 * 3 + 2
    N = count_parameters(config) + 50304 * width + norms * width + 50304
    assert millions in as_printed(N / 1e6, len(millions.partition(".")[2]))


def test_large_models_are_counted_without_memory():
    assert {p.device for p in meta_model(gpt(8192, 2)).parameters()} == {torch.device("meta")}


def test_step_flops_are_narayanans_sum():
    """Forward 24·b·s·l·w² for the matrices, 4·b·s²·l·w for attention, 2·b·s·w·V for logits.

    Backward costs twice, and recomputation once more, except that the logits are not recomputed.
    """
    b, s, layers, w, vocabulary = 3, 512, 32, 1024, 100256
    layer = 24 * b * s * w**2 + 4 * b * s**2 * w
    expected = 4 * layers * layer + 3 * 2 * b * s * w * vocabulary
    assert step_flops(layers, w, s, vocabulary, b) == pytest.approx(expected, rel=1e-12)


def test_encoder_decoder_step_flops_are_those_that_torch_counts():
    """Four forward passes of the layers, three of the logits, of transformers' own T5 without dropout."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import T5Config, T5ForConditionalGeneration

    b, s, t, layers, w, vocabulary = 2, 30, 11, 3, 32, 50
    config = T5Config(
        vocab_size=vocabulary, d_model=w, d_kv=8, d_ff=4 * w, num_heads=4, num_layers=layers, dropout_rate=0.0,
        attn_implementation="eager", decoder_start_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        batch = {"input_ids": torch.zeros(b, s, dtype=torch.long), "labels": torch.zeros(b, t, dtype=torch.long)}
    with FlopCounterMode(display=False) as counter:
        model(input_ids=batch["input_ids"], decoder_input_ids=batch["labels"])
    logits = 2 * b * t * w * vocabulary
    expected = 4 * (counter.get_total_flops() - logits) + 3 * logits
    assert encoder_decoder_step_flops(layers, w, s, t, vocabulary, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("layers, sequence, ratio", [(32, 512, 0.1487), (64, 2048, 0.1645)])
def test_nanolm_cost_ratio(layers, sequence, ratio):
    steps = {w: step_flops(layers, w, sequence, 100256, 512) for w in (256, 384, 512, 640, 768, 896, 1024, 2048, 8192)}
    proxies = [steps[w] for w in steps if 256 < w < 8192]
    assert round(cost_ratio(steps[256], 8, proxies, steps[8192]), 4) == ratio


def test_training_flops():
    assert training_flops(N=2.0, D=5.0) == 60.0


def test_unknown_convention():
    with pytest.raises(ConfigurationError, match="count='embeddings' is unknown; use 'total'"):
        count_parameters(gpt(128), "embeddings")
