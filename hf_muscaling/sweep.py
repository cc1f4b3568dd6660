"""Search hyperparameters at base width with any number of workers, on one machine or many, on one Optuna study.

Every worker runs the same command. The study's storage (SQLite, or any database of SQLAlchemy) hands out cells: each is
done once, one whose worker was killed is handed out again, and a finished sweep is done again by nobody. Runs are
written as `run_experiment` writes them, so that the series that follows finds its base-width run trained.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.errors import ConfigurationError, TrainingError
from hf_muscaling.interruption import listening
from hf_muscaling.pruning import require_optuna, rung_loss, rungs
from hf_muscaling.runs import Run, write_json, write_text
from hf_muscaling.study import PARAMETERS, Objective, Study, SweepOptions


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found so far: a row a cell, and the best run once every cell is done (else None)."""

    cells: list[dict[str, Any]]
    best: Run | None
    notes: list[str] = field(default_factory=list)
    """What to know of the grid: that a law moved it, and where from; that the best rate is at its edge."""

    @property
    def complete(self) -> bool:
        """Return whether every cell is done: finished, pruned or diverged."""
        return all(cell["state"] in ("finished", "pruned", "diverged") for cell in self.cells)

    def __str__(self) -> str:
        lines = [f"{'learning rate':>13}  {'init std':>9}  {'multiplier':>10}  held-out loss"]
        for cell in sorted(self.cells, key=lambda c: math.inf if c["loss"] is None else c["loss"]):
            values = [cell["params"].get(name) for name in PARAMETERS]
            shown = ["–" if v is None else f"{v:.4g}" for v in values]
            loss = cell["state"] if cell["loss"] is None else f"{cell['loss']:.4f}"
            lines.append(f"{shown[0]:>13}  {shown[1]:>9}  {shown[2]:>10}  {loss}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def run_sweep(config: ExperimentConfig, options: SweepOptions | None = None, progress: bool = True) -> SweepResult:
    """Search the experiment's learning rates, initial stds and output multipliers at base width; returns the result.

    Any number of workers may call it with the same settings, at once or one after the other. Writes below
    `config.output_dir`: `runs/` (a folder a run, as `run_experiment` does), `sweep.json` (a row a cell, and
    notes: from where to where a `learning_rate_law` moved the grid, a best rate at its edge) and, once every cell is
    done, `best.yaml`: the experiment with the best settings, for run_series, the notes at its head. Of runs within
    0.25 % of the lowest loss the one with the smallest learning rate is the best (`best_of_grid`).

    Raises ConfigurationError for a storage that cannot be opened, a study of another experiment, or several processes
    under one launcher; TrainingError if every run diverged; Preempted on SIGTERM (another worker takes its cell).
    """
    require_optuna()
    from hf_muscaling.configuration import launched_processes
    from hf_muscaling.folders import writable_folder
    from hf_muscaling.horizon import moved_grid

    options = options or SweepOptions()
    if launched_processes() > 1:
        raise ConfigurationError(
            "A trial of a sweep trains in one process: start several workers (the same command, as often as you like, "
            "or a SLURM array) instead of one launcher with several processes."
        )
    config, notes = moved_grid(config)
    config = replace(config, learning_rate_law=None)  # best.yaml's rate is not to be moved again
    config.base_config()
    folder = writable_folder(config.output_dir)
    study = Study(config, options, folder)
    with listening():
        study.work(_trainer(config, folder, progress))
    return write_results(config, study, folder, notes)


def _trainer(config: ExperimentConfig, folder: Path, progress: bool) -> Objective:
    """Return what trains a cell; the data are prepared when the first one comes."""
    setup: Any = None

    def train(params: Mapping[str, float], report: Callable[[int, float], None]) -> tuple[float | None, str]:
        nonlocal setup
        from hf_muscaling.experiment import experiment_family, prepare_experiment
        from hf_muscaling.series import Job
        from hf_muscaling.training import train_run

        args = config.training_arguments()
        if setup is None:
            setup = prepare_experiment(config, progress)
        job = Job(
            cell_config(config, setup.base, params), args, seed=config.seed, learning_rate=params["learning_rate"]
        )
        if progress:
            print(f"training {', '.join(f'{name} {value:.4g}' for name, value in params.items())}", flush=True)
        run = train_run(
            job.config, job.args, setup.train_dataset, setup.heldout_dataset, folder / "runs", role="grid",
            hashes=setup.hashes, data_collator=setup.data_collator, family=experiment_family(config, setup.data),
            callbacks=[_reporter(config.steps, report)],
        )  # fmt: skip
        return run.loss, run.run_id

    return train


def cell_config(config: ExperimentConfig, base: Any, params: Mapping[str, float]) -> Any:
    """Return the base-width config with a cell's initial std and output multiplier, as `run_experiment` builds it."""
    std, tau = params["init_std"], params["output_multiplier"]
    return base.replace(**config.init_fields(std), output_multiplier=tau).at_width(config.base_width)


def _reporter(steps: int, report: Callable[[int, float], None]) -> Any:
    """Return a callback that reports the training loss at the rungs; the report may raise to stop the run."""
    from transformers import TrainerCallback

    left = rungs(steps)

    class Reporter(TrainerCallback):
        """Report at the first logged step at or past each rung."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            """Report every rung that was reached since."""
            while left and left[0] <= state.global_step:
                rung = left.pop(0)
                rows = [row for row in state.log_history if "loss" in row and "learning_rate" in row]
                loss = rung_loss(rows, rung)
                if loss is not None and math.isfinite(loss):  # a divergence ends the run by itself, with a record
                    report(rung, loss)

    return Reporter()


def write_results(config: ExperimentConfig, study: Study, folder: Path, notes: Sequence[str] = ()) -> SweepResult:
    """Write sweep.json and, when every cell is done, best.yaml; return the result."""
    from hf_muscaling.experiment import at_edge

    result = SweepResult(study.results(), None, list(notes))
    record = {"study": study.options.study, "sampler": study.options.sampler, "cells": result.cells}
    write_json(folder / "sweep.json", record | {"notes": result.notes})
    if not result.complete:
        return result
    rates = config.learning_rates if study.options.sampler == "grid" else []  # pruned ones too, which have no record
    best, params = _best_run(config, folder, result.cells, rates)
    result = replace(result, best=best, notes=[*notes, *filter(None, [at_edge(rates, best)])])
    write_json(folder / "sweep.json", record | {"notes": result.notes})
    write_text(folder / "best.yaml", best_yaml(config, best, params, result.notes))
    return result


def _best_run(
    config: ExperimentConfig, folder: Path, cells: list[dict[str, Any]], rates: Sequence[float]
) -> tuple[Run, dict[str, float]]:
    """Return the record of the best run and its hyperparameters."""
    from hf_muscaling.experiment import best_of_grid

    params = {cell["run_id"]: cell["params"] for cell in cells if cell["run_id"] is not None}
    paths = [folder / "runs" / run_id / "run.json" for run_id in params]
    if missing := [path for path in paths if not path.exists()]:
        raise TrainingError(
            f"The study has finished {len(paths)} runs, but {missing[0]} does not exist: all workers must share one "
            "output folder (--output_dir)."
        )
    best = best_of_grid([Run.load(path) for path in paths], config, rates)
    return best, params[best.run_id]


def best_yaml(config: ExperimentConfig, best: Run, params: Mapping[str, float], notes: Sequence[str] = ()) -> str:
    """Return the experiment with the best settings as YAML that run_series reads: what differs from the defaults, and
    the notes of the sweep as comments.
    """
    import yaml

    searched: dict[str, Any] = {of: [params[name]] for name, of in PARAMETERS.items()}
    chosen, default = replace(config, **searched), ExperimentConfig()
    kept = {
        f.name: getattr(chosen, f.name)
        for f in fields(chosen)
        if f.name in searched or getattr(chosen, f.name) != getattr(default, f.name)
    }
    head = f"# The best of a sweep at base width {config.base_width}: held-out loss {best.loss:.4f} ({best.run_id}).\n"
    head += "".join(f"# {' '.join(note.split())}\n" for note in notes)
    return head + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
