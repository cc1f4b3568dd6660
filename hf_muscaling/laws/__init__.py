"""Scaling laws: fitted to tables of runs, with intervals; NumPy and SciPy only, never torch."""

from .answers import TradeOff
from .base import Evaluation, ExtrapolationWarning, IdentificationWarning, Prediction, ScalingLaw
from .chinchilla import ChinchillaLaw
from .evaluation import Extrapolation, Target, evaluate_extrapolation
from .frontier import Frontier, envelope, isoflop
from .grid import ExtrapolationGrid, extrapolation_grid
from .kaplan import KaplanLaw
from .kaplan_step import KaplanStepLaw
from .power import PowerLaw

__all__ = [
    "ChinchillaLaw",
    "Evaluation",
    "Extrapolation",
    "ExtrapolationGrid",
    "ExtrapolationWarning",
    "IdentificationWarning",
    "KaplanLaw",
    "KaplanStepLaw",
    "Frontier",
    "PowerLaw",
    "Prediction",
    "ScalingLaw",
    "Target",
    "evaluate_extrapolation",
    "extrapolation_grid",
    "TradeOff",
    "envelope",
    "isoflop",
]
