"""Perplexity and bits per byte from the losses of single targets. Needs NumPy and evaluate only."""

import math

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Sums a language model's losses up: loss in nats per target, perplexity exp(loss), and bits per byte, which compares
models with different tokenizers on the same text (Gao et al. 2020, The Pile, section 3.1).
"""
_INPUTS = """
Args:
    predictions: for each sequence, the loss of each target in nats, -ln p(target).
    references: for each sequence, the targets' ids; those below 0 are left out, as -100 is by transformers.
    bytes_per_target: mean number of bytes of text a target stands for (optional; bits_per_byte needs it).
Returns:
    loss: mean over targets, nats.
    perplexity: exp(loss).
    bits_per_target: loss / ln 2.
    bits_per_byte: bits_per_target / bytes_per_target, if given.
    targets: how many were counted.
Examples:
    >>> import evaluate
    >>> from hf_muscaling.metrics import metric_path
    >>> metric = evaluate.load(metric_path("bits_per_byte"))
    >>> found = metric.compute(predictions=[[0.0, 0.693147]], references=[[-100, 7]], bytes_per_target=4.0)
    >>> round(found["perplexity"], 3), round(found["bits_per_byte"], 3), found["targets"]
    (2.0, 0.25, 1)
"""
_CITATION = """
@article{gao2020pile,
  title = {The Pile: An 800GB Dataset of Diverse Text for Language Modeling},
  author = {Gao, Leo and others},
  year = {2020}
}
"""


class BitsPerByte(evaluate.Metric):
    """Loss, perplexity and bits per byte of a language model."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references, bytes_per_target=None):
        if [len(p) for p in predictions] != [len(r) for r in references]:
            raise ValueError("Every sequence needs one loss a target.")
        losses = np.concatenate([np.asarray(p, float) for p in predictions])
        counted = np.concatenate([np.asarray(r) for r in references]) >= 0
        if not counted.any():
            raise ValueError("No target is counted: every reference is below 0.")
        if bytes_per_target is not None and not bytes_per_target > 0:
            raise ValueError(f"bytes_per_target must be positive, got {bytes_per_target!r}.")
        loss = float(losses[counted].mean())
        found = {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_target": loss / math.log(2),
            "targets": int(counted.sum()),
        }
        if bytes_per_target is not None:
            found["bits_per_byte"] = found["bits_per_target"] / bytes_per_target
        return found
