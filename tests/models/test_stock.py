"""At base width nothing differs from transformers; under standard parametrisation nothing does at any width."""

import torch

from tests.models.helpers import MATRIX, logits


def test_parameters_and_logits_equal_stock_bit_for_bit(architecture, tied, tokens):
    config = architecture.base(tie_word_embeddings=tied)
    ours, stock = architecture.model(config, seed=3), architecture.stock(config, seed=3)
    mine, theirs = ours.state_dict(), stock.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert torch.equal(logits(ours, tokens), logits(stock, tokens))


def test_away_from_the_base_width_it_does(architecture):
    """The comparison above can fail."""
    wide, name = architecture.base(initializer_range=0.5).at_width(64), MATRIX[architecture.name]
    ours, stock = architecture.model(wide, seed=3), architecture.stock(wide, seed=3)
    equal = torch.equal(ours.state_dict()[name], stock.state_dict()[name])
    assert equal is (architecture.name == "t5")  # whose stock initialisation is a fan-in one, as μP's
    tokens = torch.arange(64).reshape(4, 16)
    assert not torch.allclose(logits(ours, tokens), logits(stock, tokens), rtol=1e-2)


def test_standard_parametrisation_equals_stock_at_every_width(architecture, tied, tokens):
    config = architecture.base(tie_word_embeddings=tied, parametrization="sp").at_width(96)
    ours, stock = architecture.model(config, seed=1), architecture.stock(config, seed=1)
    assert torch.equal(logits(ours, tokens), logits(stock, tokens))


def test_at_base_width_through_at_width_equals_the_base(architecture, tokens):
    config = architecture.base()
    same = config.at_width(config.hidden_size)
    assert config.is_base and same.is_base and not config.at_width(64).is_base
    a, b = architecture.model(config), architecture.model(same)
    assert torch.equal(logits(a, tokens), logits(b, tokens))


def test_the_readout_keeps_the_tie(architecture, tied):
    model = architecture.model(architecture.base(tie_word_embeddings=tied).at_width(64))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
