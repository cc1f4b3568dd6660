"""Checkpoints that can be trusted: a manifest, written last, holds every file's size and sha256 and is checked at load.

A kill can leave a checkpoint incomplete, or without its optimizer, which Trainer would silently replace by a fresh
Adam; a bit flip in a safetensors or optimizer file would be loaded without a word. A checkpoint without a manifest, or
unlike it, is passed over for the one before.
"""

import hashlib
import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from transformers import TrainerCallback

from hf_muscaling.errors import RecordError
from hf_muscaling.interruption import stop
from hf_muscaling.runs import read_json, write_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PATIENCE = 5.0
"""Seconds that a stop may wait for the next row of the loss curve: a checkpoint there leaves the curve as it was."""
EVERY = 10
"""Several processes agree on a stop at every row and every so many steps: asking each other costs a round trip."""


def write_manifest(checkpoint: Path, **facts: Any) -> None:
    """Vouch for a checkpoint: write the size and sha256 of each of its files, and some facts, atomically.

    Every process calls it; each reads its share of the files, once all of them are written.
    """
    state = PartialState()
    state.wait_for_everyone()
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST)
    found = [(p.relative_to(checkpoint).as_posix(), *_fingerprint(p)) for p in _share(files)]
    found = gather_object(found)
    if state.is_main_process:
        listed = {name: {"size": size, "sha256": digest} for name, size, digest in sorted(found)}
        write_json(checkpoint / MANIFEST, {"files": listed, **facts})
    state.wait_for_everyone()


def last_valid_checkpoint(folder: str | os.PathLike[str], below: float = math.inf) -> Path | None:
    """Return the newest checkpoint in a Trainer output folder that is what its manifest says, or None.

    Only those of steps below `below` count. Every process calls it and gets the same answer. A warning names each newer
    one that is passed over and why.
    """
    names = [[p.name for p in checkpoints(folder) if int(p.name.rpartition("-")[2]) < below]]
    broadcast_object_list(names)  # a shared file system may show processes different folders for a moment
    for name in reversed(names[0]):
        problem = checkpoint_problem(Path(folder) / name)
        if problem is None:
            return Path(folder) / name
        if PartialState().is_main_process:
            logger.warning("Passing over %s in %s: %s; continuing from the one before.", name, folder, problem)
    return None


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints in a folder, oldest first by their step: the clock may have jumped between two of them."""
    found = [p for p in Path(folder).glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def checkpoint_problem(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be used, or None; every process checks its share of the files."""
    problem = None
    try:
        listed = manifest(checkpoint)["files"]
        for name in _share(sorted(listed)):
            problem = problem or _file_problem(checkpoint / name, listed[name])
    except FileNotFoundError:
        problem = "it is incomplete (it has no manifest, which is written last)"
    except (OSError, RecordError, KeyError, TypeError, AttributeError) as error:
        problem = f"its manifest is damaged ({type(error).__name__}: {error})"
    return next((p for p in gather_object([problem]) if p is not None), None)


def manifest(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest: `files`, `step`, `layout` and `seconds`."""
    document = read_json(checkpoint / MANIFEST)
    if not isinstance(document, dict):
        raise RecordError(f"{checkpoint / MANIFEST} is no manifest.")
    return document


def _file_problem(path: Path, expected: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    size, digest = _fingerprint(path)
    if size != expected["size"]:
        return f"{path.name} has {size} bytes instead of {expected['size']}"
    return None if digest == expected["sha256"] else f"{path.name} was damaged since (its checksum does not match)"


def _fingerprint(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
        return handle.tell(), digest.hexdigest()


def _share(items: list) -> list:
    state = PartialState()
    return items[state.process_index :: state.num_processes]


class CheckpointKeeper(TrainerCallback):
    """Write each checkpoint's manifest, then drop the oldest ones.

    Trainer itself must keep all (`save_total_limit=None`): it drops by modification time, so that after a clock jump it
    would drop the newest, and it does so before the new one is vouched for. `layout` says on how many processes and
    threads the run is trained, `earlier` how many seconds it took before it was continued.
    """

    def __init__(self, limit: int | None, layout: dict[str, Any], started: float, earlier: float):
        self.limit, self.layout, self.started, self.earlier = limit, layout, started, earlier

    def on_save(self, args, state, control, **kwargs):
        """Vouch for the checkpoint of this step."""
        seconds = round(self.earlier + time.monotonic() - self.started, 2)
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_manifest(newest, step=state.global_step, layout=self.layout, seconds=seconds)
        if self.limit and PartialState().is_main_process:
            there = checkpoints(args.output_dir)
            upto = there.index(newest) + 1  # those of a later step are damaged ones that were passed over
            for old in [*there[: max(upto - self.limit, 0)], *there[upto:]]:
                shutil.rmtree(old, ignore_errors=True)


class StopInTime(TrainerCallback):
    """Save a checkpoint and end training when asked to stop; `stopped` says that it did.

    A checkpoint does not hold the losses since the last row of the curve, so the stop waits for the next row if that
    takes less than `PATIENCE` seconds; otherwise the curve gets one row more than an undisturbed run's.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.began, self.first = time.monotonic(), 0
        self.asked_at: float | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self.began, self.first = time.monotonic(), state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        """Look whether somebody asked; over several processes, whether any of them was asked."""
        if args.world_size > 1:
            if not control.should_log and state.global_step % EVERY:
                return
            asked = torch.tensor(float(stop.asked), device=args.device)
            due = bool(reduce(asked, reduction="sum").item())
        else:
            due = stop.asked and (control.should_log or not self._row_is_near(args, state))
        if due and state.global_step < state.max_steps:
            stop.reason = stop.reason or "another of its processes was asked to stop"
            self.stopped = True
            control.should_log = control.should_save = control.should_training_stop = True

    def _row_is_near(self, args, state) -> bool:
        each = (time.monotonic() - self.began) / max(state.global_step - self.first, 1)
        rows = max(int(args.logging_steps), 1)
        return (rows - state.global_step % rows) * each < PATIENCE
