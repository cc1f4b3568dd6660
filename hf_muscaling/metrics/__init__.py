"""Modules for `evaluate`, a folder each: the prediction error of a law, the bits per byte of a model.

>>> from hf_muscaling.metrics import load_metric
>>> metric = load_metric("prediction_error")                             # no network
>>> metric.compute(predictions=[3.3, 3.1], references=[3.0, 3.1], low=[2.9, 3.2], high=[3.5, 3.4])["coverage"]
0.5
"""

from pathlib import Path
from typing import Any

from hf_muscaling.errors import ConfigurationError

METRICS = ("prediction_error", "bits_per_byte")


def metric_path(name: str) -> str:
    """Return the folder of a metric, for `evaluate.load`. Raises ConfigurationError for an unknown name."""
    if name not in METRICS:
        raise ConfigurationError(f"metric {name!r} is unknown; use one of {', '.join(METRICS)}.")
    return str(Path(__file__).parent / name)


def load_metric(name: str) -> Any:
    """Load one of the package's metrics with `evaluate`; see the module."""
    import evaluate

    return evaluate.load(metric_path(name))
