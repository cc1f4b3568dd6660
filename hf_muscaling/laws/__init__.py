"""Scaling laws: fitted to tables of runs, with intervals; NumPy and SciPy only, never torch."""

from .answers import TradeOff
from .base import Evaluation, ExtrapolationWarning, IdentificationWarning, Prediction, ScalingLaw
from .chinchilla import ChinchillaLaw
from .frontier import Frontier, envelope, isoflop
from .kaplan import KaplanLaw
from .kaplan_step import KaplanStepLaw
from .power import PowerLaw

__all__ = [
    "ChinchillaLaw",
    "Evaluation",
    "ExtrapolationWarning",
    "IdentificationWarning",
    "KaplanLaw",
    "KaplanStepLaw",
    "Frontier",
    "PowerLaw",
    "Prediction",
    "ScalingLaw",
    "TradeOff",
    "envelope",
    "isoflop",
]
