"""Numbers that papers printed: nanoLM's tables, and the Pile losses of Cerebras-GPT and Pythia. N in billions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedSeries:
    """Losses (nats per token) of one family over N (billions of parameters), the largest last.

    `predicted` is what the source itself predicted for the largest, None where it says nothing.
    """

    name: str
    source: str
    N: tuple[float, ...]
    loss: tuple[float, ...]
    predicted: float | None = None


_NANOLM = "nanoLM (Yao et al. 2023, arXiv 2304.06875)"
_GPT_12 = (0.00882, 0.02236, 0.04061, 0.06359, 0.09128, 0.1236, 0.1609, 0.20267)
_BERT_12 = (0.02252, 0.05128, 0.08633, 0.12767, 0.17531, 0.2292, 0.35596)
_T5_12 = (0.02646, 0.06703, 0.12175, 0.19063, 0.27366, 0.3708, 0.60770)

# The width-896 entries of BERT and T5 are left out: their N is not printed. So is GPT's at 20k steps, not legible.
TABLE_3 = (
    PublishedSeries(
        "GPT, 12 layers, 20k steps", _NANOLM, (*_GPT_12[:6], _GPT_12[7]),
        (4.45, 4.20, 4.05, 3.94, 3.90, 3.87, 3.84), predicted=3.810,
    ),
    PublishedSeries(
        "Llama, 12 layers, 20k steps", _NANOLM, (0.00959, 0.02547, 0.04764, 0.07610, 0.11085, 0.1519, 0.25286),
        (4.49, 4.31, 4.24, 4.20, 4.18, 4.17, 4.10), predicted=4.112,
    ),
    PublishedSeries(
        "GPT, 32 layers, 7k steps", _NANOLM, (0.038, 0.076, 0.126, 0.189, 0.265, 0.353, 0.454, 1.714, 26.185),
        (3.92, 3.76, 3.65, 3.59, 3.54, 3.49, 3.47, 3.45, 3.41), predicted=3.381,
    ),
    PublishedSeries(
        "GPT, 64 layers, 10k steps", _NANOLM, (0.077, 0.153, 0.254, 0.381, 0.532, 0.709, 0.911, 3.432, 52.385),
        (3.656, 3.389, 3.298, 3.215, 3.198, 3.087, 3.080, 2.958, 2.883), predicted=2.86,
    ),
)  # fmt: skip

# 12 layers, C4, 7k steps: with μP and without.
FIGURE_3 = {
    "GPT": (
        PublishedSeries("μP", _NANOLM, _GPT_12, (4.52, 4.25, 4.16, 4.10, 4.04, 4.01, 4.00, 3.98)),
        PublishedSeries("without", _NANOLM, _GPT_12, (4.73, 4.48, 4.50, 4.42, 4.36, 4.33, 4.29, 4.31)),
    ),
    "BERT": (
        PublishedSeries("μP", _NANOLM, _BERT_12, (4.45, 3.74, 3.63, 3.56, 3.49, 3.47, 3.43)),
        PublishedSeries("without", _NANOLM, _BERT_12, (4.25, 3.71, 3.59, 3.52, 3.47, 3.42, 3.40)),
    ),
    "T5": (
        PublishedSeries("μP", _NANOLM, _T5_12, (5.18, 4.71, 4.57, 4.61, 4.60, 4.60, 4.49)),
        PublishedSeries("without", _NANOLM, _T5_12, (5.14, 5.06, 4.82, 4.81, 4.66, 6.50, 6.03)),
    ),
}

_CEREBRAS = "Cerebras-GPT (Dey et al. 2023, arXiv 2304.03208), table of zero-shot evaluations, Pile test cross-entropy"
# Sizes as they are named. The model cards on the Hub print 2.566, 2.299, 2.184, 1.996 and 1.575 for 111M to 1.3B and
# 13B; the paper's figures are used. Pythia is the one trained on the Pile with its duplicates, as Cerebras-GPT is.
TABLE_4 = (
    PublishedSeries(
        "Cerebras-GPT", _CEREBRAS, (0.111, 0.256, 0.590, 1.3, 2.7, 6.7, 13.0),
        (2.608, 2.349, 2.181, 1.997, 1.834, 1.704, 1.572),
    ),
    PublishedSeries(
        "Pythia", f"{_CEREBRAS}, which evaluates Pythia as well", (0.070, 0.160, 0.410, 1.0, 1.4, 2.8, 6.9, 12.0),
        (2.504, 2.186, 1.971, 1.845, 1.793, 1.720, 1.626, 1.582),
    ),
)  # fmt: skip

COST_RATIOS = {"gpt-32l": 0.131, "gpt-64l": 0.142}
"""What nanoLM states for its Eq. 1."""
TRIALS = 8
"""nanoLM's t, the trials at base width."""
