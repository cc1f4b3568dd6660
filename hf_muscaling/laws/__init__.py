"""Scaling laws: fitted to tables of runs, with intervals; NumPy and SciPy only, never torch."""

from .answers import TradeOff
from .base import ExtrapolationWarning, IdentificationWarning, ScalingLaw
from .chinchilla import ChinchillaLaw
from .evaluation import Extrapolation, Target, evaluate_extrapolation
from .families import Family, load_families, pooled_prior, save_families
from .frontier import Frontier, envelope, isoflop
from .grid import ExtrapolationGrid, extrapolation_grid
from .kaplan import KaplanLaw
from .kaplan_step import KaplanStepLaw
from .power import PowerLaw
from .prediction import Evaluation, Prediction
from .schedules import constant_schedule, cosine_schedule, wsd_schedule
from .stages import StageWise, estimate_stages
from .trajectory import AnnealingLaw

__all__ = [
    "AnnealingLaw",
    "ChinchillaLaw",
    "Evaluation",
    "Extrapolation",
    "ExtrapolationGrid",
    "ExtrapolationWarning",
    "IdentificationWarning",
    "KaplanLaw",
    "KaplanStepLaw",
    "Family",
    "Frontier",
    "PowerLaw",
    "Prediction",
    "ScalingLaw",
    "Target",
    "evaluate_extrapolation",
    "extrapolation_grid",
    "StageWise",
    "TradeOff",
    "constant_schedule",
    "cosine_schedule",
    "envelope",
    "estimate_stages",
    "isoflop",
    "load_families",
    "pooled_prior",
    "save_families",
    "wsd_schedule",
]
