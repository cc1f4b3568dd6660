"""A coordinate check: changes stay Θ(1) under μP, and the same test fails without it."""

import pytest
import torch

from hf_muscaling.optim import MuAdamW


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


@pytest.mark.parametrize("architecture", ["gpt2", "llama"], indirect=True)
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
