"""Which finished runs are an experiment's proxies: those of its own design, told from others by all that decides a run.

A run of another architecture, depth, head size, optimizer, horizon or data lies on another curve. Of the settings only
width, seed and the place in the grid may differ. Data are compared by what `experiment.json` beside the runs says of
them and by their hashes; nothing is downloaded or tokenised.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, RecordError
from ..runs import Run, read_json

if TYPE_CHECKING:
    from ..configuration import ExperimentConfig

Differences = dict[str, tuple[Any, Any]]
"""Setting → what the run has, what the experiment has."""

SEARCHED = ("initializer_range", "initializer_factor", "output_multiplier")
"""What the grid searches, beside the learning rate."""
_TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_BY_MACHINE = ("learning_rate", "seed", "optim", "fp16")  # the first two may differ, the others are no settings
_DATA = (
    "dataset", "dataset_config", "dataset_revision", "dataset_split", "heldout_split", "mixture", "data_files",
    "text_column", "domains", "vocab_size", "tokenizer", "sequence_length", "heldout_tokens",
)  # fmt: skip
_NAMES = {"max_steps": "steps", "lr_scheduler_type": "lr_scheduler", "data_seed": "seed", "density": "hidden_share"}
_BASE = {"hidden_size": "base_width", "n_embd": "base_width", "d_model": "base_width",
         "head_dim": "head_size", "d_kv": "head_size", "num_attention_heads": "heads at base width",
         "n_head": "heads at base width", "num_heads": "heads at base width"}  # fmt: skip
SHOWN = 6  #: differences named


def finished_proxies(config: ExperimentConfig, folder: str | Path) -> list[Run]:
    """Return the runs below a folder that are proxies of an experiment: of its design, narrower than the target, with
    the settings of the grid's best run.

    Warns when runs of other designs lie beside them and are left out. Raises RecordError for a damaged record or a
    folder without any, ConfigurationError, naming what differs, where no run is of this design or where the runs are of
    several data sets.
    """
    from ..experiment import best_of_grid
    from ..horizon import centred_rates

    config = centred_rates(config)
    paths = sorted(Path(folder).glob("**/run.json"))
    if not paths:
        raise RecordError(f"{folder} holds no finished run (run.json); give the --output_dir of a run-series.")
    runs = [Run.load(path) for path in paths]
    stated = _stated(paths)
    found = [differences(config, run, stated[path]) for run, path in zip(runs, paths, strict=True)]
    own = [k for k, different in enumerate(found) if not different]
    if not own:
        nearest = min(range(len(runs)), key=lambda k: len(found[k]))
        why = _say(found[nearest] | _sizes(config, runs[nearest]), runs[nearest])
        raise ConfigurationError(
            f"The {len(runs)} runs of {folder} are of another design than this experiment: {why}. A law describes "
            "one design: give the settings that they were trained with, or the --output_dir of this experiment."
        )
    own, others = _one_data_set(runs, own, [stated[path] for path in paths], folder)
    left = [(found[k], runs[k]) for k in range(len(runs)) if found[k]]
    if left or others:
        nearest_one = min(left, key=lambda pair: len(pair[0])) if left else None
        why = _say(*nearest_one) if nearest_one else "data_hash differs"
        warnings.warn(
            f"{len(left) + others} of the {len(runs)} runs below {folder} are of other designs and are left out "
            f"({why}).",
            UserWarning,
            stacklevel=2,
        )
    kept = [runs[k] for k in own]
    grid = [run for run in kept if run.width == config.base_width and run.seed == config.seed]
    if not grid:
        raise ConfigurationError(
            f"{folder} has runs of this design at widths {sorted({run.width for run in kept})}, but none of base width "
            f"{config.base_width} and seed {config.seed}, among which the grid's best is chosen. Finish the grid first."
        )
    best = best_of_grid(grid, config)
    kept = [run for run in kept if _settings(run) == _settings(best) and run.width < config.target_width]
    return sorted(kept, key=lambda run: (run.width, run.seed))


def _settings(run: Run) -> tuple[Any, ...]:
    return run.lr, *(run.config.get(name) for name in SEARCHED)


def differences(config: ExperimentConfig, run: Run, stated: Mapping[str, Any] | None = None) -> Differences:
    """Return what tells a run's design from the experiment's, empty where it is one of its runs.

    `stated` is the `experiment.json` beside the run; it says of the data what hashes alone do not.
    """
    from ..training import config_record, run_settings

    known = (stated or {}).get("config", {}) if _speaks_of(stated, run) else None
    base = config.base_config(run.config.get("vocab_size"))
    theirs, ours = run.config.get("model_type", ""), str(base.model_type)
    if theirs != ours:
        found: Differences = {"architecture": (theirs.removeprefix("mu_"), ours.removeprefix("mu_"))}
    else:
        skipped = {*SEARCHED, *_TOKENS, "mup_base"}
        here = config_record(base.at_width(config.base_width))
        shape = here["mup_base"]
        found = _unlike(run.config.get("mup_base") or {}, shape, _BASE)
        if found:  # no width of the experiment: what does not follow from the width is compared
            skipped |= {*shape, *(base.attribute_map.get(name, name) for name in (*shape, "hidden_size"))}
        else:
            here = config_record(base.at_width(run.width))
        found |= _unlike(run.config, here, {}, skipped)
        depth = [record.get("depth_parametrization", "none") for record in (run.config, here)]
        found |= {"depth_parametrization": (depth[0], depth[1])} if depth[0] != depth[1] else {}
    found |= _unsearched(config, run)
    found |= _unlike(run.settings, run_settings(config.training_arguments()), _NAMES, {*_BY_MACHINE, "objective"})
    tokens = config.batch_size * config.sequence_length
    if tokens != run.B and "batch_size" not in found:
        found["tokens a step"] = (run.B, tokens)
    if "objective" in run.settings:
        own = {"density": config.hidden_share, "mean_span": config.mean_span}
        found |= _unlike(run.settings["objective"], own, _NAMES)
    if known is not None:
        here = {name: getattr(config, name) for name in _DATA}
        found |= {name: pair for name, pair in _unlike(known, here, {}).items() if not _same_files(name, *pair)}
    if known is None or "vocab_size" in config.further_fields():
        from ..planning import experiment_vocabulary

        sizes = run.config.get("vocab_size"), experiment_vocabulary(config)
        found |= {"vocab_size": sizes} if sizes[0] != sizes[1] else {}
    return found


def _unsearched(config: ExperimentConfig, run: Run) -> Differences:
    """Return what of a run's rate, initialisation and output multiplier is no point of the experiment's grid."""
    grid: dict[str, list[float]] = {"learning_rate": config.learning_rates}
    grid["output_multiplier"] = config.output_multipliers
    for std in config.init_stds:
        for name, value in config.init_fields(std).items():
            grid.setdefault(name, []).append(value)
    found: Differences = {}
    for name, values in grid.items():
        value = run.lr if name == "learning_rate" else run.config.get(name, values[0])
        if not any(math.isclose(value, own, rel_tol=1e-9) for own in values):
            found[name] = (value, values if len(values) > 1 else values[0])
    return found


def _sizes(config: ExperimentConfig, run: Run) -> Differences:
    """Return N where the experiment's model of this width has another."""
    from ..counting import count_parameters
    from ..planning import experiment_vocabulary

    if run.width % config.head_size:
        return {}
    N = count_parameters(config.base_config(experiment_vocabulary(config)).at_width(run.width))
    return {f"N at width {run.width}": (run.N, N)} if run.N != N else {}


def _unlike(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], names: Mapping[str, str], skipped: set[str] | None = None
) -> Differences:
    """Return the entries that both records have and that differ; a field of another library version says nothing."""
    return {
        names.get(name, name): (value, ours[name])
        for name, value in theirs.items()
        if name in ours and name not in (skipped or ()) and value != ours[name]
    }


def _same_files(name: str, theirs: Any, ours: Any) -> bool:
    if name != "data_files":
        return False
    return [os.path.abspath(path) for path in theirs] == [os.path.abspath(path) for path in ours]


def _stated(paths: Sequence[Path]) -> dict[Path, Any]:
    """Return each run's `experiment.json`, in the folder above its series' `runs/`, or None."""
    read: dict[Path, Any] = {}
    for folder in {path.parents[2] for path in paths if len(path.parents) > 2}:
        file = folder / "experiment.json"
        document = read_json(file) if file.is_file() else None
        read[folder] = document if isinstance(document, dict) else None
    return {path: read.get(path.parents[2]) if len(path.parents) > 2 else None for path in paths}


def _hashes(record: Any) -> tuple[str, str]:
    get = record.get if isinstance(record, Mapping) else lambda name, _: getattr(record, name)
    return get("data_hash", ""), get("tokenizer_hash", "")


def _speaks_of(stated: Mapping[str, Any] | None, run: Run) -> bool:
    """Whether an `experiment.json` is about the data of this run: a folder may hold runs of an earlier experiment."""
    return isinstance(stated, Mapping) and _hashes(stated) == _hashes(run)


def _one_data_set(
    runs: Sequence[Run], own: Sequence[int], stated: Sequence[Any], folder: str | Path
) -> tuple[list[int], int]:
    """Return those of the own runs whose data are known to be the experiment's, and how many others there are.

    Where nothing is known of any, all must have one hash.
    """
    known = [k for k in own if _speaks_of(stated[k], runs[k])] or list(own)
    if len(hashes := {_hashes(runs[k]) for k in known}) > 1:
        shown = ", ".join(sorted((data or tokenizer)[:8] for data, tokenizer in hashes))
        raise ConfigurationError(
            f"The runs of {folder} have the experiment's settings, but were trained or evaluated on {len(hashes)} data "
            f"sets (hashes {shown}), so that their losses do not compare. Give the --output_dir of one run-series."
        )
    kept = [k for k in own if _hashes(runs[k]) in hashes]
    return kept, len(own) - len(kept)


def _say(different: Differences, run: Run) -> str:
    named = [f"{name} is {_short(theirs)} there and {_short(ours)} here"
             for name, (theirs, ours) in list(different.items())[:SHOWN]]  # fmt: skip
    more = len(different) - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "") + f" (run {run.run_id})"


def _short(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
