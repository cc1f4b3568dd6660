"""How well predicted losses met measured ones: ARE, bias and coverage. Needs NumPy and evaluate only."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Scores predictions of a scaling law on runs that were trained afterwards. ARE is the mean of |predicted - measured| /
measured (Choshen et al. 2024, A Hitchhiker's Guide to Scaling Law Estimation); coverage is the share of measured losses
inside the predicted interval, to be compared with the interval's level.
"""
_INPUTS = """
Args:
    predictions: predicted losses, in nats per token.
    references: measured losses, in the same unit, positive.
    low, high: ends of the predicted intervals, one a prediction (optional; coverage and width need both).
Returns:
    are: mean absolute relative error, a fraction.
    worst: largest absolute relative error.
    bias: mean signed relative error; positive where losses were predicted too high.
    coverage: share of references inside [low, high], if given.
    width: mean of (high - low) / reference, if given.
Examples:
    >>> import evaluate
    >>> from hf_muscaling.metrics import metric_path
    >>> metric = evaluate.load(metric_path("prediction_error"))
    >>> round(metric.compute(predictions=[3.3, 2.7], references=[3.0, 3.0])["are"], 3)
    0.1
"""
_CITATION = """
@article{choshen2024hitchhiker,
  title = {A Hitchhiker's Guide to Scaling Law Estimation},
  author = {Choshen, Leshem and Zhang, Yang and Andreas, Jacob},
  year = {2024}
}
"""


class PredictionError(evaluate.Metric):
    """Relative error and coverage of predicted losses."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({k: datasets.Value("float64") for k in ("predictions", "references")}),
        )

    def _compute(self, predictions, references, low=None, high=None):
        predicted, measured = np.asarray(predictions, float), np.asarray(references, float)
        if not (np.isfinite(predicted).all() and np.isfinite(measured).all() and (measured > 0).all()):
            raise ValueError("predictions must be finite and references finite and positive: leave diverged runs out.")
        if (low is None) != (high is None):
            raise ValueError("Give both low and high, or neither.")
        errors = predicted / measured - 1
        found = {"are": np.abs(errors).mean(), "worst": np.abs(errors).max(), "bias": errors.mean()}
        if low is not None:
            low, high = np.asarray(low, float), np.asarray(high, float)
            if low.shape != measured.shape or high.shape != measured.shape or not (low <= high).all():
                raise ValueError("low and high need one value a prediction, low <= high.")
            found["coverage"] = ((measured >= low) & (measured <= high)).mean()
            found["width"] = ((high - low) / measured).mean()
        return {name: float(value) for name, value in found.items()}
