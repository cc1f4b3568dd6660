"""Train the runs of one phase where `placement` puts them: here, in worker processes, or in those of the launcher."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainingArguments

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.interruption import stop
from hf_muscaling.live import Label
from hf_muscaling.placement import RATE, Placement, assign, machine_memory, place
from hf_muscaling.progress import SeriesProgress
from hf_muscaling.runs import Run
from hf_muscaling.training import planned_name, recorded_run, train_run
from hf_muscaling.worker import packed
from hf_muscaling.workers import Task, Workers

WORKER_MEMORY = 6e8
"""Bytes that a process takes for its libraries."""


@dataclass
class Phase:
    """Runs that may be trained in any order: jobs, their expected costs and bytes, and what they share."""

    jobs: Sequence[Any]
    costs: Sequence[float]
    memory: Sequence[float]
    train_dataset: Any
    eval_dataset: Any
    folder: Path
    length: int
    options: dict[str, Any]
    bar: SeriesProgress

    def recorded(self, k: int) -> Run | None:
        """Return the record of a job's run if it is finished."""
        job = self.jobs[k]
        return recorded_run(job.config, job.args, self.train_dataset, self.eval_dataset, self.folder, **self.options)

    def train(self, k: int, *callbacks: TrainerCallback) -> Run:
        """Train a job's run in this process, with those of the launcher."""
        job = self.jobs[k]
        bar = self.bar.start(job.name, self.costs[k], self.label(k))
        data = (self.train_dataset, self.eval_dataset, self.folder)
        run = train_run(job.config, job.args, *data, callbacks=[bar, *callbacks], **self.options)
        bar.finish(run)
        return run

    def label(self, k: int) -> Label:
        """Return which curve of a live view a job's run is."""
        job = self.jobs[k]
        args = job.args
        return Label(
            self.options.get("role", "proxy"), job.config.hidden_size, args.learning_rate, args.seed,
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size * self.length,
        )  # fmt: skip

    def name(self, k: int) -> str:
        """Return the name of a job's run."""
        job = self.jobs[k]
        return planned_name(job.config, job.args, self.train_dataset, self.eval_dataset, **self.options)


@dataclass(frozen=True)
class Lanes:
    """What one run can be given alone: `count` CPU threads, devices, or processes of the launcher."""

    count: int
    device: str = "cpu"
    threads: int = 1
    devices: tuple[str, ...] | None = None
    launched: bool = False

    @classmethod
    def of(cls, args: TrainingArguments) -> "Lanes":
        """Return the lanes of this process, or of all that were launched with it."""
        device = args.device.type
        if device == "cuda":
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            names = visible if visible[0] else [str(k) for k in range(torch.cuda.device_count())]
        if args.world_size > 1:
            own = (names[args.device.index or 0],) if device == "cuda" else None
            return cls(args.world_size, device, torch.get_num_threads(), own, launched=True)
        if device == "cuda":
            return cls(len(names), device, torch.get_num_threads(), tuple(names))
        return cls(torch.get_num_threads() if device == "cpu" else 1, device)

    def place(self, phase: Phase, mode: str) -> Placement:
        """Return the placement of a phase's runs on these lanes."""
        cpu = self.device == "cpu"
        if self.devices is not None and not self.launched and self.count > 1 and mode == "auto":
            mode = "apart"  # one process uses several devices badly
        return place(
            phase.costs,
            self.count,
            mode,
            memory=[bytes_ + WORKER_MEMORY * cpu for bytes_ in phase.memory],
            memory_limit=machine_memory() if cpu else float("inf"),
            lane_memory=float("inf") if cpu else torch.cuda.get_device_properties(0).total_memory,
            rate=RATE["cpu" if cpu else "cuda"],
            own_lane=cpu and not self.launched,
            wide=cpu and not self.launched,
        )


def train_phase(phase: Phase, mode: str, workers: Workers) -> list[Run]:
    """Train the runs of a phase that are not finished, and return all of them in the order of the jobs.

    Raises ConfigurationError for mode "apart" if data or options only exist in this process.
    """
    lanes = Lanes.of(phase.jobs[0].args)
    mode = "together" if lanes.count == 1 else mode
    shared = b""
    if mode != "together":
        try:
            shared = packed(("share", phase.train_dataset, phase.eval_dataset, phase.folder, phase.options))
            packed([job.config for job in phase.jobs])
        except Exception as error:  # pickling raises what it likes
            if mode == "apart":
                raise ConfigurationError(
                    f"placement='apart' trains in other processes, where the data set, its collator, or the model "
                    f"cannot be rebuilt ({error}). Define what they use in a module, or use placement='together'."
                ) from error
            mode = "together"
    plan = lanes.place(phase, mode)

    role = phase.options.get("role", "proxy")
    names = [phase.name(k) for k in range(len(phase.jobs))]
    runs: dict[str, Run] = {}
    for k in _agreed([k for k in range(len(names)) if phase.recorded(k) is not None]):
        runs[names[k]] = _await(phase, k)
        phase.bar.skip(phase.costs[k], replace(runs[names[k]], role=role))
    apart = list({names[k]: k for k in plan.apart if names[k] not in runs}.values())
    if lanes.launched:
        mine, _ = assign([phase.costs[k] for k in apart], [0.0] * lanes.count)
        own = [k for k, lane in zip(apart, mine, strict=True) if lane == PartialState().process_index]
        workers.configure(1, lanes.threads, lanes.devices)
    else:
        own = apart
        workers.configure(plan.workers - (lanes.device == "cpu"), plan.width, lanes.devices)
    if own:
        workers.start()  # they import torch while the large runs are trained here
    for k in plan.together:
        if names[k] not in runs:
            stop.check()
            runs[names[k]] = phase.train(k)
    if own:
        here = _train_here(phase, plan.width) if lanes.device == "cpu" and not lanes.launched else None
        trained = workers.train([_task(phase, k) for k in own], shared, here)
        runs |= {names[k]: run for k, run in trained.items()}
    for k in apart:
        if names[k] not in runs:
            runs[names[k]] = _await(phase, k)  # another launched process trains it
            if phase.bar.view is not None:
                phase.bar.view.finished(replace(runs[names[k]], role=role))
    return [replace(runs[name], role=role) for name in names]


def _task(phase: Phase, k: int) -> Task:
    job = phase.jobs[k]
    return Task(k, job.name, job.config, job.args, lambda: phase.bar.start(job.name, phase.costs[k], phase.label(k)))


def _train_here(phase: Phase, threads: int) -> Callable[[Task, Callable], Run]:
    def train(task: Task, poll: Callable) -> Run:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return phase.train(task.key, _Meanwhile(poll))
        finally:
            torch.set_num_threads(before)

    return train


class _Meanwhile(TrainerCallback):
    """Look after the workers a few times a second while this process trains."""

    def __init__(self, poll: Callable[[], None]):
        self.poll = poll
        self.last = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if time.monotonic() - self.last > 0.05:
            self.poll()
            self.last = time.monotonic()

    def on_prediction_step(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)


def _agreed(value: list[int]) -> list[int]:
    """Return the main process's value in all processes: a shared file system may show them different files."""
    return broadcast_object_list([value])[0]


def _await(phase: Phase, k: int) -> Run:
    """Return the record of a run that is finished, or is being trained by another launched process."""
    while (run := phase.recorded(k)) is None:
        stop.check()
        time.sleep(0.5)
    return run
