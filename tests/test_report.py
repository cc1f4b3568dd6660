"""The lines that end an experiment: the prediction and what to know before trusting it."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from hf_muscaling import PowerLaw
from hf_muscaling.report import headline
from tests.test_runs import make_run


def result(losses, target):
    """An experiment of given proxy losses, and a target `target` times the largest."""
    sizes = np.geomspace(1e5, 1e6, len(losses)).astype(int)
    proxies = [make_run(run_id=f"r{n}", N=int(n), loss=float(loss)) for n, loss in zip(sizes, losses, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        law = PowerLaw().fit({"N": sizes.astype(float), "loss": losses})
        size = int(target * sizes[-1])
        config = SimpleNamespace(architecture="llama", target_width=512, level=0.9, count="total")
        return SimpleNamespace(
            config=config, proxies=proxies, law=law, target_N=size, prediction=law.predict(N=size), best=proxies[0],
            cost_ratio=0.5, actual=None,
        )  # fmt: skip


def clean(sizes):
    return 2 + 40 * sizes**-0.25


def test_a_steep_law_needs_no_note_about_being_flat():
    found = result(clean(np.geomspace(1e5, 1e6, 8)), 4)
    assert "does not tell" not in headline(found) and "Predicted loss of llama" in headline(found)


def test_a_flat_law_is_said_beside_its_prediction():
    found = result(np.array([3.40, 3.36, 3.345, 3.342, 3.341]), 1.5)
    assert "largest proxy's own loss, 3.3410, lies inside the interval" in headline(found)


@pytest.mark.parametrize("notes", [True, False])
def test_what_the_law_leaves_open_stands_beside_the_prediction(notes):
    found = result(np.array([4.0, 3.81, 3.66, 3.5]), 3)
    assert found.law.caveats()
    for message in found.law.caveats():
        assert (f"note: {message}" in headline(found, notes)) == notes
