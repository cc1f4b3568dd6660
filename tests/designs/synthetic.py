"""Runs of designs that never were: a true power law each, noise that seeds share in part."""

import numpy as np

from hf_muscaling.runs import Run

SIZES = (92_000, 158_000, 238_000, 331_000, 437_000)
WIDTHS = (32, 48, 64, 80, 96)
TARGET = 1.35e6


def make_noise(rng, seeds=4):
    """Return noise that designs may share: (width, seed) → a standard normal number."""
    return {(w, s): rng.normal() for w in WIDTHS for s in range(seeds)}


def make_design(rng, *, shift=0.0, b=-0.5, noise=0.002, seeds=range(2), shared=None, share=0.95, D=10**6, **fields):
    """Return runs of L = (2.5 + 450·N^b)·exp(shift), relative noise of which `shared` gives the part `share`."""
    runs = []
    for width, N in zip(WIDTHS, SIZES, strict=True):
        for seed in seeds:
            own = rng.normal()
            z = own if shared is None else np.sqrt(share) * shared[width, seed] + np.sqrt(1 - share) * own
            a = 450 * 3e5 ** (-0.5 - b)  # equal losses at N = 3e5
            loss = float((2.5 + a * N**b) * np.exp(shift + noise * z))
            runs.append(
                Run(
                    f"w{width}-s{seed}",
                    "finished",
                    N,
                    N // 2,
                    D,
                    100,
                    10**4,
                    6.0 * N * D,
                    loss,
                    width,
                    seed,
                    0.01,
                    **fields,
                )
            )
    return runs
