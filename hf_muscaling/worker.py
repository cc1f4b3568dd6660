"""What a worker process does, and how a job gets into it: see `workers`. Light to import until the first job.

Jobs hold objects (data sets, a collator), so they travel as `multiprocessing` sends them, through the anonymous pipe of
a process that we started ourselves, and only towards it. What comes back is JSON. Neither ever is a file.
"""

import io
import json
import logging
import mmap
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import fields
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np


def packed(message: object) -> bytes:
    """Return a message for a worker; memory-mapped arrays go by the name of their file.

    Raises TypeError, or what else pickling raises, for something that a worker could not rebuild: what is local to a
    function, or was defined in the script itself, which a worker does not import.
    """
    buffer = io.BytesIO()
    _Pickler(buffer).dump(message)
    if b"__main__" in (data := buffer.getvalue()):
        raise TypeError("something in it was defined in the script itself; move it to a module")
    return data


def unpacked(message: bytes) -> Any:
    """Return what `packed` packed: called in a worker, on what the process that started it sent."""
    return ForkingPickler.loads(message)


class _Pickler(ForkingPickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap):  # the whole map, not a part of it
            order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
            return np.memmap, (value.filename, value.dtype, "r", value.offset, value.shape, order)
        return NotImplemented


def fields_of(args: Any) -> tuple[type, dict[str, Any]]:
    """Return the class and fields of training arguments, as for a single process.

    Their other attributes belong to this process: its device, its place among others. The batch of all processes
    becomes the worker's.
    """
    from hf_muscaling.training import run_settings

    values = {f.name: getattr(args, f.name) for f in fields(args) if f.init}
    alone = ("local_rank", "fsdp", "fsdp_config", "deepspeed", "parallelism_config")
    values |= {f.name: f.default for f in fields(args) if f.name in alone}
    values["per_device_train_batch_size"] = run_settings(args)["batch_size"] // args.gradient_accumulation_steps
    return type(args), values


def serve() -> None:
    """Be a worker: train what comes in until the input ends, then exit, whatever is under way."""
    inbox, outbox = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what a library prints must not end up among the messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started us decides
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(inbox, messages), daemon=True).start()

    def say(*message: object) -> None:
        try:
            outbox.send_bytes(json.dumps(message).encode())
        except OSError:
            os._exit(0)  # nobody listens

    logging.getLogger().addHandler(_Forward(say))
    import hf_muscaling.training  # noqa: F401  which takes seconds

    say("ready")
    shared: list[Any] = []
    while True:
        try:
            kind, *content = unpacked(messages.get())
            if kind == "share":
                shared = content
            else:
                say("done", _train(say, content, shared).to_dict())
        except Exception as error:
            say("failed", type(error).__name__, str(error), traceback.format_exc())


def _train(say: Callable, job: list[Any], shared: list[Any]) -> Any:
    import torch

    from hf_muscaling.training import train_run

    config, (arguments_class, values), threads = job
    train_dataset, eval_dataset, folder, options = shared
    torch.set_num_threads(threads)
    args = arguments_class(**values)
    return train_run(config, args, train_dataset, eval_dataset, folder, callbacks=[_reporter(say)], **options)


def _reporter(say: Callable) -> Any:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        """Tell the process that shows the bars how far a run is, a few times a second."""

        said = 0.0

        def on_train_begin(self, args, state, control, **kwargs):
            say("begin", state.max_steps, state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            if time.monotonic() - self.said > 0.2:
                self.said = time.monotonic()
                say("step", state.global_step)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                say("loss", logs["loss"], state.global_step)

    return Reporter()


class _Forward(logging.Handler):
    """Send log records to the process that started us, whose handlers the user knows."""

    def __init__(self, say: Callable):
        super().__init__()
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record's logger, level and message."""
        self.say("log", record.name, record.levelno, self.format(record))


def _listen(inbox: Connection, messages: "queue.SimpleQueue[bytes]") -> None:
    try:
        while True:
            messages.put(inbox.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)  # who started us is gone, or is done with us
