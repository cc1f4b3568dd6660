"""Runs of a known law of Part I, with noise: what the tests fit and predict."""

import numpy as np

from hf_muscaling.laws import KaplanStepLaw

TRUTH = {"N_c": 2e9, "alpha_N": 0.12, "S_c": 150.0, "alpha_S": 0.6, "B_star": 3e6, "alpha_B": 0.19}
SIZES = (2.7e4, 6e4, 1.05e5, 2.3e5, 4.1e5)
BATCHES = (512.0, 2048.0, 8192.0)
TOKENS = 1.6e6


def loss_at(n, s, b):
    """The true loss."""
    return KaplanStepLaw.loss(n, s, b, **TRUTH)


def steps_to(loss, n, b):
    """The true steps to a loss."""
    rest = loss - (TRUTH["N_c"] / n) ** TRUTH["alpha_N"]
    least = TRUTH["S_c"] * rest ** (-1 / TRUTH["alpha_S"])
    return least * (1 + critical_batch(loss) / b)


def critical_batch(loss):
    """The true critical batch size, tokens."""
    return TRUTH["B_star"] / loss ** (1 / TRUTH["alpha_B"])


def curve(n, b, rng, run=0.002, row=0.003, points=25, tokens=TOKENS):
    """Checkpoints of one run: its own offset and the noise of each row, in log loss."""
    steps = np.geomspace(tokens / b / 30, tokens / b, points)
    offset = run * rng.normal()
    return [
        {"N": n, "S": s, "B": b, "run_id": f"{n:g} {b:g}",
         "loss": float(loss_at(n, s, b) * np.exp(offset + row * rng.normal()))}
        for s in steps
    ]  # fmt: skip


def runs(seed=0, sizes=SIZES, batches=BATCHES, **noise):
    """The table of a whole series."""
    rng = np.random.default_rng(seed)
    return [row for n in sizes for b in batches for row in curve(n, b, rng, **noise)]
