"""Published tables, typed in once."""

import numpy as np
import pytest

NANOLM = {
    # nanoLM (Yao et al., arXiv:2304.06875), loss tables; N in millions (12 layers) or billions (32 and 64).
    "gpt12": (
        [8.82, 22.36, 40.61, 63.59, 91.28, 123.6, 160.9, 202.67],
        [4.52, 4.25, 4.16, 4.10, 4.04, 4.01, 4.00, 3.98],
    ),
    "gpt32": (
        [0.038, 0.076, 0.126, 0.189, 0.265, 0.353, 0.454, 1.714, 26.185],
        [3.92, 3.76, 3.65, 3.59, 3.54, 3.49, 3.47, 3.45, 3.41],
    ),
    "gpt64": (
        [0.077, 0.153, 0.254, 0.381, 0.532, 0.709, 0.911, 3.432, 52.385],
        [3.656, 3.389, 3.298, 3.215, 3.198, 3.087, 3.080, 2.958, 2.883],
    ),
    "bert12": ([22.52, 51.28, 86.33, 127.67, 175.31, 229.2, 355.96], [4.45, 3.74, 3.63, 3.56, 3.49, 3.47, 3.43]),
    "gpt12_sp": (
        [8.82, 22.36, 40.61, 63.59, 91.28, 123.6, 160.9, 202.67],
        [4.73, 4.48, 4.50, 4.42, 4.36, 4.33, 4.29, 4.31],
    ),
}


@pytest.fixture
def nanolm():
    """name → (N, loss), arrays."""
    return {name: (np.array(n), np.array(loss)) for name, (n, loss) in NANOLM.items()}


def synthetic(rng, *, b=-0.34, floor=0.6, noise=0.003, sizes=7, span=9.0, seeds=2, loss=3.5):
    """Runs of a true power law in N with relative normal noise: columns, and the noiseless loss as a function."""
    n = np.repeat(np.geomspace(1e6, span * 1e6, sizes), seeds)

    def truth(x):
        return loss * ((1 - floor) * (np.asarray(x) / 1e6) ** b + floor)

    return {"N": n, "loss": truth(n) * np.exp(noise * rng.normal(size=len(n)))}, truth


@pytest.fixture(scope="session")
def make_runs():
    """The generator of synthetic runs."""
    return synthetic
