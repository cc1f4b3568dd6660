"""The recipe of factors: batch sizes kept in tokens, settings compared at a loss that all reach."""

import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_muscaling import KaplanStepLaw, TrajectoryConfig, estimate_stages
from hf_muscaling.errors import ConfigurationError

from .truth import critical_batch, runs

RECIPE = Path(__file__).parents[2] / "recipes" / "trajectory_factors.py"


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(RECIPE), run_name="recipe")


def test_batches_stay_the_same_in_tokens(recipe):
    config = TrajectoryConfig(batch_sizes=[8, 32, 128], batch_size=32, target_batch_sizes=[64])
    longer = recipe["under"](config, "code", 256)
    assert longer.domains == ["code"] and longer.sequence_length == 256 and longer.batch_sizes == [2, 8, 32]
    assert longer.tokens_per_run == config.tokens_per_run
    with pytest.raises(ConfigurationError, match="whole number"):
        recipe["under"](config, "prose", 1024)


def test_settings_are_compared_at_one_loss(recipe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = runs()
        law = KaplanStepLaw(irreducible=False).fit(rows)
        finals = [SimpleNamespace(loss=row["loss"], finished=True) for row in rows[24::25]]
        result = SimpleNamespace(law=law, stages=estimate_stages(rows), table=rows, runs=finals, data_info={},
                                 best=SimpleNamespace(lr=0.006))  # fmt: skip
        record = recipe["compare"]({"prose:64": result, "prose:128": result})
    row = record["prose:64"]
    assert row["loss"] == round(1.1 * min(run.loss for run in finals), 2)
    assert row["critical_batch"][0] == pytest.approx(critical_batch(row["loss"]), rel=0.25)
    assert row["critical_batch"][1] < row["critical_batch"][0] < row["critical_batch"][2]
    assert recipe["table"](record).count("\n") == 3
    figure = recipe["plot"]({"prose:64": result})
    assert len(figure.axes) == 2 and all(axes.lines for axes in figure.axes)
