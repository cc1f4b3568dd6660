"""Scaling laws: fitted to tables of runs, with intervals; NumPy and SciPy only, never torch."""

from .answers import TradeOff
from .base import ExtrapolationWarning, IdentificationWarning, ScalingLaw
from .chinchilla import ChinchillaLaw
from .downstream import DownstreamLaw
from .evaluation import Extrapolation, Target, evaluate_extrapolation
from .families import Family, load_families, pooled_prior, save_families
from .forecasting import Forecast, forecast
from .frontier import Frontier, envelope, isoflop
from .grid import ExtrapolationGrid, extrapolation_grid
from .kaplan import KaplanLaw
from .kaplan_step import KaplanStepLaw
from .learning_rate import LearningRateLaw, LearningRatePrediction, Optimum
from .power import PowerLaw
from .prediction import Evaluation, Prediction, ScoreEvaluation, ScorePrediction
from .schedules import constant_schedule, cosine_schedule, wsd_schedule
from .stages import StageWise, estimate_stages
from .trajectory import AnnealingLaw
from .two_stage import TwoStage

__all__ = [
    "AnnealingLaw",
    "ChinchillaLaw",
    "DownstreamLaw",
    "Evaluation",
    "Extrapolation",
    "ExtrapolationGrid",
    "ExtrapolationWarning",
    "IdentificationWarning",
    "KaplanLaw",
    "KaplanStepLaw",
    "LearningRateLaw",
    "LearningRatePrediction",
    "Optimum",
    "Family",
    "Forecast",
    "Frontier",
    "PowerLaw",
    "Prediction",
    "ScalingLaw",
    "ScoreEvaluation",
    "ScorePrediction",
    "Target",
    "evaluate_extrapolation",
    "extrapolation_grid",
    "StageWise",
    "TradeOff",
    "TwoStage",
    "constant_schedule",
    "cosine_schedule",
    "envelope",
    "estimate_stages",
    "forecast",
    "isoflop",
    "load_families",
    "pooled_prior",
    "save_families",
    "wsd_schedule",
]
