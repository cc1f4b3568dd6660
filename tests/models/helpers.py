"""What the conformance tests of the models share."""

import math

import torch
from torch import nn

MATRIX = {
    "gpt2": "transformer.h.0.attn.c_attn.weight",
    "llama": "model.layers.0.mlp.down_proj.weight",
    "bert": "bert.encoder.layer.0.output.dense.weight",
    "t5": "decoder.block.0.layer.1.EncDecAttention.v.weight",
}
"""One matrix-like parameter of each architecture."""


def inputs(model, tokens):
    """Return the arguments of a forward pass; an encoder-decoder reads the tokens on both sides."""
    sides = {"input_ids": tokens}
    return sides | {"decoder_input_ids": tokens.flip(0)} if model.config.is_encoder_decoder else sides


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(**inputs(model, tokens)).logits


def last_hidden(model, tokens):
    """Return what enters the layers between the last block and the logits."""
    out = model(**inputs(model, tokens), output_hidden_states=True)
    return (out.decoder_hidden_states if model.config.is_encoder_decoder else out.hidden_states)[-1]


def head(model):
    return model.get_output_embeddings()


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


def expected_std(model, name):
    """Return the standard deviation that the table asks of a matrix: stock at base width, over √r if matrix-like."""
    scale, config = model.mu_table()[name], model.config
    if config.model_type == "mu_t5":
        base = config.to_mup_base()
        width, head_size = base["d_model"], base["d_kv"]
        if scale.role == "hidden":
            fan_in = base["d_ff"] if name.endswith("wo.weight") else width
            sigma = config.initializer_factor * (fan_in * (head_size if ".q." in name else 1)) ** -0.5
        else:
            sigma = config.initializer_factor * (width**-0.5 if "relative" in name else 1.0)
    else:
        sigma = config.initializer_range
        if name.endswith("c_proj.weight"):  # GPT-2's residual projections, kept by μP
            sigma /= math.sqrt(2 * config.num_hidden_layers)
    return sigma * scale.fan_in**-0.5 if scale.role == "hidden" else sigma
