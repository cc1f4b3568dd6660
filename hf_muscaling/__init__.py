"""hf_muscaling: μP variants of Hugging Face models, and scaling laws that predict a large model before it is trained.

The two halves are independent: laws never import torch, μP never imports a law. Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "models": (
        "MuBertConfig",
        "MuBertForMaskedLM",
        "MuBertForPreTraining",
        "MuBertForSequenceClassification",
        "MuBertForTokenClassification",
        "MuBertModel",
        "MuGPT2Config",
        "MuGPT2DoubleHeadsModel",
        "MuGPT2ForSequenceClassification",
        "MuGPT2ForTokenClassification",
        "MuGPT2LMHeadModel",
        "MuGPT2Model",
        "MuLlamaConfig",
        "MuLlamaForCausalLM",
        "MuLlamaForSequenceClassification",
        "MuLlamaForTokenClassification",
        "MuLlamaModel",
        "MuReadout",
        "MuT5Config",
        "MuT5EncoderModel",
        "MuT5ForConditionalGeneration",
        "MuT5ForSequenceClassification",
        "MuT5Model",
    ),
    "base_shapes": ("config_with_base_shapes", "read_base_shapes", "write_base_shapes"),
    "optim": ("MuAdamW", "MuSGD", "mu_param_groups"),
    "checks.coordinate": ("coordinate_check",),
    "checks.coordinates": ("CoordinateCheck",),
    "checks.depth": ("DepthCheck", "depth_check"),
    "checks.transfer": ("TransferCheck", "transfer_check"),
    "convert": (
        "MuAutoModelForCausalLM",
        "MuAutoModelForMaskedLM",
        "MuAutoModelForSeq2SeqLM",
        "mu_config",
        "mu_variant",
        "verify_variant",
    ),
    "designs.compare": ("Comparison", "compare_designs"),
    "designs.verdict": ("Verdict", "compare_series"),
    "counting": ("count_parameters", "training_flops"),
    "planning": ("Hardware", "Plan", "plan_experiment"),
    "study": ("SweepOptions",),
    "sweep": ("run_sweep",),
    "configuration": ("ExperimentConfig",),
    "trainer": ("MuTrainer", "MuTrainingArguments"),
    "series": ("train_series",),
    "curves": ("curve_table",),
    "trajectory": ("TrajectoryConfig", "predict_trajectory"),
    "runs": ("Run", "Series"),
    "laws": (
        "AnnealingLaw",
        "ChinchillaLaw",
        "DownstreamLaw",
        "KaplanLaw",
        "KaplanStepLaw",
        "LearningRateLaw",
        "PowerLaw",
        "ScalingLaw",
        "TwoStage",
        "constant_schedule",
        "cosine_schedule",
        "estimate_stages",
        "evaluate_extrapolation",
        "extrapolation_grid",
        "forecast",
        "wsd_schedule",
    ),
    "budget": ("Advice", "Assumptions", "BudgetPlan", "ProxyOption", "advise", "expected_interval", "plan_budget"),
    "readers": ("RunTable", "ScoreTable", "read_runs", "read_scores"),
    "data": ("DataConfig", "prepare_data"),
    "hub.folders": ("pull_experiment", "push_experiment"),
    "hub.proxies": ("push_proxy",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


if TYPE_CHECKING:
    from hf_muscaling.base_shapes import config_with_base_shapes, read_base_shapes, write_base_shapes
    from hf_muscaling.budget import (
        Advice,
        Assumptions,
        BudgetPlan,
        ProxyOption,
        advise,
        expected_interval,
        plan_budget,
    )
    from hf_muscaling.checks.coordinate import coordinate_check
    from hf_muscaling.checks.coordinates import CoordinateCheck
    from hf_muscaling.checks.depth import DepthCheck, depth_check
    from hf_muscaling.checks.transfer import TransferCheck, transfer_check
    from hf_muscaling.configuration import ExperimentConfig
    from hf_muscaling.convert import (
        MuAutoModelForCausalLM,
        MuAutoModelForMaskedLM,
        MuAutoModelForSeq2SeqLM,
        mu_config,
        mu_variant,
        verify_variant,
    )
    from hf_muscaling.counting import count_parameters, training_flops
    from hf_muscaling.curves import curve_table
    from hf_muscaling.data import DataConfig, prepare_data
    from hf_muscaling.designs.compare import Comparison, compare_designs
    from hf_muscaling.designs.verdict import Verdict, compare_series
    from hf_muscaling.hub.folders import pull_experiment, push_experiment
    from hf_muscaling.hub.proxies import push_proxy
    from hf_muscaling.laws import (
        AnnealingLaw,
        ChinchillaLaw,
        DownstreamLaw,
        KaplanLaw,
        KaplanStepLaw,
        LearningRateLaw,
        PowerLaw,
        ScalingLaw,
        TwoStage,
        constant_schedule,
        cosine_schedule,
        estimate_stages,
        forecast,
        wsd_schedule,
    )
    from hf_muscaling.laws.evaluation import evaluate_extrapolation
    from hf_muscaling.laws.grid import extrapolation_grid
    from hf_muscaling.models import (
        MuBertConfig,
        MuBertForMaskedLM,
        MuBertForPreTraining,
        MuBertForSequenceClassification,
        MuBertForTokenClassification,
        MuBertModel,
        MuGPT2Config,
        MuGPT2DoubleHeadsModel,
        MuGPT2ForSequenceClassification,
        MuGPT2ForTokenClassification,
        MuGPT2LMHeadModel,
        MuGPT2Model,
        MuLlamaConfig,
        MuLlamaForCausalLM,
        MuLlamaForSequenceClassification,
        MuLlamaForTokenClassification,
        MuLlamaModel,
        MuReadout,
        MuT5Config,
        MuT5EncoderModel,
        MuT5ForConditionalGeneration,
        MuT5ForSequenceClassification,
        MuT5Model,
    )
    from hf_muscaling.optim import MuAdamW, MuSGD, mu_param_groups
    from hf_muscaling.planning import Hardware, Plan, plan_experiment
    from hf_muscaling.readers import RunTable, ScoreTable, read_runs, read_scores
    from hf_muscaling.runs import Run, Series
    from hf_muscaling.series import train_series
    from hf_muscaling.study import SweepOptions
    from hf_muscaling.sweep import run_sweep
    from hf_muscaling.trainer import MuTrainer, MuTrainingArguments
    from hf_muscaling.trajectory import TrajectoryConfig, predict_trajectory
