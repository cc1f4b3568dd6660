"""Laws of each kind and a page of them, and the browser."""

import warnings

import numpy as np
import pytest

from hf_muscaling import ChinchillaLaw, KaplanLaw, KaplanStepLaw, PowerLaw
from tests.browser import browser, driver  # noqa: F401  fixtures

TRUTH = {"N_c": 8e13, "alpha_N": 0.076, "S_c": 2.1e3, "alpha_S": 0.76, "B_star": 2e8, "alpha_B": 0.21}


@pytest.fixture(scope="session")
def laws():
    """One law of each kind, fitted to runs of a step law with 0.4 % of noise."""
    n, s, b = (
        v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 5), [2e3, 8e3, 3e4, 1e5], [6e4, 5e5, 2e6])
    )  # fmt: skip
    loss = KaplanStepLaw.loss(n, s, b, **TRUTH) * np.exp(0.004 * np.random.default_rng(0).normal(size=len(n)))
    runs = {"N": n, "S": s, "B": b, "D": s * b, "loss": loss}
    last = (s == 1e5) & (b == 2e6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "power": PowerLaw().fit({"N": n[last], "loss": loss[last]}),
            "chinchilla": ChinchillaLaw().fit(runs),
            "kaplan": KaplanLaw().fit(runs),
            "steps": KaplanStepLaw().fit(runs),
        }


@pytest.fixture(scope="session")
def page(laws, tmp_path_factory):
    """The page of all four."""
    from hf_muscaling.space import write_space

    return write_space(laws, tmp_path_factory.mktemp("space"), title="Four laws")
