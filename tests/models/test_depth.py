"""The depth table: residual branches × base depth / depth (CompleteP), off unless asked for."""

import copy

import pytest
import torch

from hf_muscaling import MuAdamW
from hf_muscaling.errors import ConfigurationError
from hf_muscaling.models import MuBranch, MuBranchConv1D
from tests.models.helpers import logits

BRANCHES = {"gpt2": 2, "llama": 2, "bert": 2, "t5": 5}  # a layer; T5 counts one of the encoder and one of the decoder


def branches(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, (MuBranch, MuBranchConv1D))}


def test_at_depth_scales_the_layers_and_nothing_else(architecture):
    base = architecture.base()
    deep = base.at_depth(6)
    assert deep.num_hidden_layers == 6 and deep.hidden_size == base.hidden_size and deep.depth_multiplier == 1.0
    assert deep.at_width(64).num_hidden_layers == 6 and deep.at_width(64).mup_base == base.to_mup_base()
    assert deep.at_depth(2).to_dict() == base.replace(mup_base=base.to_mup_base()).to_dict()
    with pytest.raises(ConfigurationError, match="layers must be a positive whole number, got 0"):
        base.at_depth(0)


def test_an_encoder_decoder_grows_on_both_sides(t5):
    assert t5.base().replace(num_decoder_layers=1).at_depth(6).num_decoder_layers == 3


def test_off_by_default_and_at_base_depth(architecture, tokens):
    assert not branches(architecture.model(architecture.base().at_depth(4)))
    base = architecture.base(depth_parametrization="completep")
    plain = architecture.model(architecture.base())
    assert not branches(architecture.model(base))
    assert torch.equal(logits(architecture.model(base), tokens), logits(plain, tokens))


def test_every_residual_branch_is_divided(architecture, tokens, tmp_path):
    config = architecture.base(depth_parametrization="completep", initializer_range=0.3).at_width(64).at_depth(8)
    model = architecture.model(config)
    found = branches(model)
    assert len(found) == 8 * BRANCHES[architecture.name]
    assert {m.multiplier for m in found.values()} == {0.25} and "multiplier=0.25" in repr(model)
    assert config.depth_multiplier == 4.0
    before = logits(model, tokens)
    for branch in found.values():
        branch.multiplier = 1.0
    assert (logits(model, tokens) - before).abs().max() > 1e-4  # the branches' multiplier is felt
    for branch in found.values():
        branch.multiplier = 0.25
    assert torch.equal(logits(copy.deepcopy(model), tokens), before)
    model.save_pretrained(tmp_path)
    again = architecture.model_class.from_pretrained(tmp_path)
    assert torch.equal(logits(again, tokens), before) and set(branches(again)) == set(found)


def test_residual_projections_of_gpt2_start_as_at_base_depth(gpt2):
    base = gpt2.base(width=64, heads=4, depth_parametrization="completep")
    std = {d: gpt2.model(base.at_depth(d)).get_parameter("transformer.h.0.mlp.c_proj.weight").std() for d in (2, 8)}
    assert std[8].item() == pytest.approx(std[2].item(), rel=0.03)
    stock = gpt2.model(base.replace(depth_parametrization="none").at_depth(8))
    assert stock.get_parameter("transformer.h.0.mlp.c_proj.weight").std().item() == pytest.approx(
        std[2].item() / 2, rel=0.03
    )


def test_eps_of_the_layers_shrinks_with_depth_and_the_rates_stay(architecture):
    config = architecture.base(depth_parametrization="completep").at_width(64).at_depth(8)
    model = architecture.model(config)
    optimizer = MuAdamW(model, lr=0.5, eps=1e-8)
    group = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        found, scale = group[id(parameter)], model.mu_table()[name]
        assert found["lr"] == (0.25 if scale.role == "hidden" and scale.fan_in == 2 else 0.5)
        inside = any(part.isdigit() for part in name.split("."))
        assert found["eps"] == pytest.approx(1e-8 / 2 / (4 if inside else 1))
