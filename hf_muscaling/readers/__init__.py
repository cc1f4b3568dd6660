"""Readers of the curves people already have; each gives the same tidy table, which any law fits.

    table = read_runs("last-years-runs/", B=524288)     # Trainer checkpoints, TensorBoard, wandb, ColPret, CSV, …
    law = ChinchillaLaw().fit(table)

No torch here: only counting a model's config imports it, when there is one.
"""

from .detect import FORMATS, detect_format, read_runs
from .exports import read_colpret, read_ladder, read_table, read_tracker
from .score_files import read_scores
from .scores import ScoreTable
from .table import RunTable
from .training_logs import read_series, read_tensorboard, read_trainer

__all__ = [
    "FORMATS",
    "RunTable",
    "ScoreTable",
    "detect_format",
    "read_colpret",
    "read_ladder",
    "read_runs",
    "read_scores",
    "read_series",
    "read_table",
    "read_tensorboard",
    "read_tracker",
    "read_trainer",
]
