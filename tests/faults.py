"""Run a tiny experiment, break it, run it again: what `test_faults.py` and a person at the terminal call.

    python -m tests.faults --folder DIR --faults random:20 sigterm bit-flip … [--seed 0] [--without checksum|atomic]

One process imports torch once and forks a child for every attempt, so that an attempt costs only its training. A child
is the whole experiment; a fault is either a real `kill -9` from outside at a random moment, or one set off at a named
place inside. After each fault the experiment is continued to its end and compared with the undisturbed one. `--without`
switches a safeguard off: a fault that it is there for must then be seen.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_muscaling import checkpoints, plotting, runs, training
from hf_muscaling.cli import guarded
from hf_muscaling.configuration import ExperimentConfig
from hf_muscaling.experiment import run_experiment
from hf_muscaling.runs import Run
from hf_muscaling.trainer import MuTrainer
from tests.series_helpers import tiny_experiment


def die() -> None:
    """Be killed, as by kill -9: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def patch(owner: Any, name: str, before: Callable | None = None, after: Callable | None = None) -> None:
    """Call something before or after a function of the package; its arguments are passed on."""
    original = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args, **kwargs)
        result = original(*args, **kwargs)
        if after is not None:
            after(*args, **kwargs)
        return result

    setattr(owner, name, patched)


def on_call(number: int, act: Callable) -> Callable:
    """Return a hook that acts on its n-th call."""
    calls = iter(range(1, 10**9))
    return lambda *args, **kwargs: act(*args) if next(calls) == number else None


def at_record(act: Callable) -> Callable:
    """Return a hook of `os.fsync` and `os.replace` that acts when the second record of a run is being written."""
    seen: list[int] = []

    def hook(*args: Any) -> None:
        frame = sys._getframe(2)
        target = frame.f_locals.get("path")
        if isinstance(target, Path) and target.name == "run.json":
            seen.append(1)
            if len(seen) == 2:
                act()

    return hook


def full_disk(trainer: Any, *_: Any) -> None:
    """Make the disk full for the optimizer's file of the checkpoint that is written now: /dev/full takes nothing."""
    folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "optimizer.pt").symlink_to("/dev/full")


def jump_clock() -> None:
    """Make the wall clock jump back an hour, or ahead, every few calls, for Python and for the checkpoints' times."""
    real, generator = time.time, random.Random(0)
    time.time = lambda: real() + generator.choice([-3600.0, 0.0, 7200.0])

    def age(trainer: Any, *_: Any) -> None:
        for k, folder in enumerate(sorted(Path(trainer.args.output_dir).glob("checkpoint-*"))):
            os.utime(folder, (real() - 3600 * k,) * 2)

    patch(MuTrainer, "_save_checkpoint", before=age)


INSIDE: dict[str, Callable[[], None]] = {
    "start": lambda: patch(training, "set_seed", before=on_call(1, lambda *_: die())),
    "grid": lambda: patch(MuTrainer, "training_step", before=on_call(13, lambda *_: die())),
    "proxy": lambda: patch(MuTrainer, "training_step", before=on_call(57, lambda *_: die())),
    "checkpoint": lambda: patch(MuTrainer, "_save_optimizer_and_scheduler", before=on_call(3, lambda *_: die())),
    "checkpoint-state": lambda: patch(MuTrainer, "_save_rng_state", after=on_call(6, lambda *_: die())),
    "manifest": lambda: patch(checkpoints, "write_manifest", before=on_call(6, lambda *_: die())),
    "evaluation": lambda: patch(MuTrainer, "evaluate", before=on_call(3, lambda *_: die())),
    "model": lambda: patch(MuTrainer, "save_model", after=on_call(9, lambda *_: die())),
    "record": lambda: patch(os, "fsync", before=at_record(die)),
    "record-moved": lambda: patch(os, "replace", after=at_record(die)),
    "report": lambda: patch(plotting, "save_figure", after=on_call(2, lambda *_: die())),
    "disk-full": lambda: patch(MuTrainer, "_save_optimizer_and_scheduler", before=on_call(6, full_disk)),
    "clock": jump_clock,
    "sigterm": lambda: patch(
        MuTrainer, "training_step", before=on_call(33, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    ),
}
"""Faults that a child brings about itself, by name."""
EXPECTED = {"disk-full": 2, "sigterm": 75, "clock": 0}
"""Exit status of the child that meets a fault; all others are killed."""
DAMAGES = ("truncated", "bit-flip", "bit-flip-weights")
"""What happens to the newest checkpoint of a run between two attempts."""


def flip(path: Path) -> None:
    """Flip one high bit in the middle of a file: of the exponent of some number."""
    content = bytearray(path.read_bytes())
    content[(len(content) // 2) | 3] ^= 0x40
    path.write_bytes(bytes(content))


def damage(kind: str, folder: Path) -> None:
    """Damage the newest checkpoint."""
    newest = max(folder.glob("runs/*/checkpoints/checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    optimizer = newest / "optimizer.pt"
    if kind == "truncated":
        optimizer.write_bytes(optimizer.read_bytes()[: optimizer.stat().st_size // 2])
    else:
        flip(optimizer if kind == "bit-flip" else newest / "model.safetensors")


def note_step(trainer: MuTrainer, *_: Any) -> None:
    """Note which run's which step is trained."""
    run = Path(trainer.args.output_dir).parent
    with open(run.parents[1] / "steps.log", "a", encoding="utf-8") as handle:  # one short line appended is atomic
        handle.write(f"{run.name} {trainer.state.global_step}\n")


class Bench:
    """A folder in which an experiment is attempted again and again; every trained step is noted in `steps.log`."""

    def __init__(self, folder: Path, config: ExperimentConfig):
        self.folder, self.config = folder, config
        self.steps = folder / "steps.log"
        folder.mkdir(parents=True)

    def attempt(self, fault: str | None = None, seconds: float | None = None) -> int:
        """Run the experiment in a child, with a fault inside or killed after some seconds; returns the status.

        Raises AssertionError if a run is trained that was finished before.
        """
        finished = {p.parent.name for p in Path(self.config.output_dir).glob("runs/*/run.json")}
        before = self.steps.stat().st_size if self.steps.exists() else 0
        child = os.fork()
        if child == 0:
            os._exit(self._child(fault))
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        noted = self.steps.read_text(encoding="utf-8")[before:] if self.steps.exists() else ""
        again = {line.split()[0] for line in noted.splitlines()} & finished
        assert not again, f"trained twice: {again}"
        return status

    def _child(self, fault: str | None) -> int:
        with open(self.folder / "messages.log", "a", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            if fault is not None:
                INSIDE[fault]()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return guarded(lambda: run_experiment(self.config, progress=False) and None)
        except BaseException:
            traceback.print_exc()
            return 3

    def trained(self) -> int:
        """Return the number of steps trained so far."""
        return len(self.steps.read_text(encoding="utf-8").splitlines())

    def messages(self) -> str:
        """Return what the children said."""
        return (self.folder / "messages.log").read_text(encoding="utf-8")

    def outcome(self) -> dict[str, Any]:
        """Return every record, prediction and law, without the seconds that they took."""
        out = Path(self.config.output_dir)
        records = {p.parent.name: Run.load(p).to_dict() | {"seconds": 0} for p in out.glob("runs/*/run.json")}
        left = sorted(str(p.relative_to(out)) for p in out.glob("runs/*/checkpoints"))
        texts = {name: (out / name).read_text(encoding="utf-8") for name in ("prediction.json", "law.json")}
        return {"records": records, "left": left, "report": (out / "report.md").exists(), **texts}


def without(safeguard: str) -> None:
    """Switch a safeguard off."""
    if safeguard == "checksum":
        checkpoints.checkpoint_problem = lambda checkpoint: (
            None if (checkpoint / checkpoints.MANIFEST).exists() else "incomplete"
        )
    if safeguard == "atomic":

        def write_text(path: Any, text: str) -> None:
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", encoding="utf-8") as handle:
                handle.write(text[: len(text) // 2])
                handle.flush()
                os.fsync(handle.fileno())
                handle.write(text[len(text) // 2 :])

        runs.write_text = write_text


def main() -> None:
    """Print a JSON line for each fault: the status it caused and whether the end equals the undisturbed run's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--faults", nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", choices=["checksum", "atomic"])
    flags = parser.parse_args()
    flags.folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"steps": 20, "widths": [8, 16, 32], "target_width": 64, "logging_steps": 4}

    def bench(name: str) -> Bench:
        return Bench(
            flags.folder / name, tiny_experiment(flags.folder, output_dir=str(flags.folder / name), **settings)
        )

    patch(MuTrainer, "training_step", before=note_step)
    whole = bench("whole")
    started = time.monotonic()
    if status := whole.attempt():
        raise SystemExit(f"the undisturbed experiment ended with {status}: {whole.messages()}")
    duration, expected = time.monotonic() - started, whole.outcome()
    if flags.without:
        without(flags.without)
    generator = random.Random(flags.seed)
    for fault in flags.faults:
        shutil.rmtree(flags.folder / "broken", ignore_errors=True)
        broken = bench("broken")
        if fault.startswith("random:"):
            moments = [generator.uniform(0.0, duration / 4) for _ in range(int(fault.partition(":")[2]))]
            statuses = [broken.attempt(seconds=moment) for moment in moments]
        elif fault in DAMAGES:
            statuses = [broken.attempt("proxy")]
            damage(fault, flags.folder / "broken")
        else:
            statuses = [broken.attempt(fault)]
        for full in (flags.folder / "broken").rglob("optimizer.pt"):
            full.unlink() if full.is_symlink() else None  # room was made
        finished = len(list((flags.folder / "broken").glob("runs/*/run.json")))
        last = broken.attempt()
        line = {"fault": fault, "statuses": statuses, "finished_before": finished, "last": last}
        line["steps"] = [broken.trained(), whole.trained()]
        line["equal"] = last == 0 and broken.outcome() == expected
        print(json.dumps(line | {"messages": broken.messages()}), flush=True)


if __name__ == "__main__":
    main()
