"""Worker processes that train whole runs side by side: kept alive between runs, replaced when lost, gone with us.

A worker is `python -c` of `worker.serve`, not a fork (torch's threads do not survive one) and not
`multiprocessing`'s (it would import the user's script again). Jobs come through its standard input, whose end is also
how it learns that the process that started it is gone; what it has to say goes back through its standard output.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from hf_muscaling import errors
from hf_muscaling.errors import MuScalingError, Preempted, TrainingError
from hf_muscaling.interruption import stop
from hf_muscaling.runs import Run
from hf_muscaling.worker import fields_of, packed, serve

logger = logging.getLogger(__name__)

LOST_AT_MOST = 3
"""A run whose worker was lost so often is given up: it is likely what kills them."""
GRACE = 30.0
"""Seconds that workers get to write their checkpoints when we are asked to stop."""
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "FSDP_", "PMI_", "OMPI_",
           "MV2_", "PARALLELISM_CONFIG_", "ACCELERATE_USE_")  # fmt: skip
"""What launchers tell their processes; a worker is a process of its own."""


@dataclass
class Task:
    """A run for a worker: `key` for the caller, what `train_run` needs besides the shared data, and its bar."""

    key: int
    name: str
    config: Any
    args: Any
    start_bar: Callable[[], Any]
    bar: Any = None
    losses: int = 0


@dataclass
class _Worker:
    process: subprocess.Popen
    inbox: Connection
    outbox: Connection
    ready: bool = False  # it has imported torch; until then another worker may be free earlier
    task: Task | None = None
    knows: int = 0  # which version of the shared data it was sent


class Workers:
    """Up to `count` worker processes with `threads` threads each; `devices` names the CUDA device of each.

    They start when `start` is called, outlive a phase, and end with the `with` block. Use:

        with Workers() as workers:
            workers.configure(count=2, threads=1)
            runs = workers.train(tasks, shared)
    """

    def __init__(self) -> None:
        self.count, self.threads = 0, 1
        self.devices: Sequence[str] | None = None
        self._workers: list[_Worker] = []
        self._shared, self._version = b"", 0
        self._queue: deque[Task] = deque()
        self._runs: dict[int, Any] = {}
        self._stopping_since: float | None = None
        self._stillborn = 0

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def configure(self, count: int, threads: int, devices: Sequence[str] | None = None) -> None:
        """Say how many workers there are, and with what; those that there are already stay."""
        self.count, self.threads, self.devices = count, threads, devices

    def start(self) -> None:
        """Start those that are missing; they import torch while we do something else."""
        for place in range(len(self._workers), self.count):
            self._workers.append(self._start(place))

    def wait_until_ready(self) -> None:
        """Wait until every worker has imported what it needs. Raises TrainingError if they cannot start."""
        self.start()
        while not all(w.ready for w in self._workers):
            self.poll(0.5)

    def train(
        self, tasks: Sequence[Task], shared: bytes, train_here: Callable[[Task, Callable], Any] | None = None
    ) -> dict[int, Any]:
        """Train the tasks in this order, each on the worker that is free first, and return their runs by key.

        `shared` is what `packed` made of data and options. `train_here(task, poll)` lets this process train as well; it
        must call `poll` now and then. The task of a worker that is lost goes to another one.

        Raises the error of the first run that fails, TrainingError for a run that loses its worker three times, and
        Preempted if this process was asked to stop, when all workers have written their checkpoints.
        """
        self._queue, self._runs = deque(tasks), {}
        self._shared, self._version = shared, self._version + 1
        self._stopping_since = None
        try:
            self.start()
            while (self._queue and self._stopping_since is None) or self._busy():
                self.poll(0.0 if train_here and self._queue else 0.5)
                if train_here is not None and self._queue and self._stopping_since is None:
                    task = self._queue.popleft()
                    self._runs[task.key] = train_here(task, self.poll)
            stop.check()
            return self._runs
        except Preempted:
            while self._busy():
                self.poll(0.5)
            raise
        finally:
            if self._busy():
                self.close(kill=True)

    def poll(self, timeout: float = 0.0) -> None:
        """Hear what the workers say, for so many seconds at most, and give those that are free something to do."""
        if stop.asked:
            self._stop_workers()
        self._feed()
        speaking = wait([w.outbox for w in self._workers], timeout)
        for worker in [w for w in self._workers if w.outbox in speaking]:
            if worker.outbox.closed:
                continue  # because of what another one said
            if (message := _received(worker.outbox)) is None:
                self._lost(worker)
            else:
                self._hear(worker, message)
        self._feed()

    def close(self, kill: bool = False) -> None:
        """End all workers: idle ones by the end of their input, at once with `kill`."""
        for worker in self._workers:
            if kill:
                worker.process.kill()
            worker.inbox.close()
        for worker in self._workers:
            try:
                worker.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.outbox.close()
        self._workers = []

    def _start(self, place: int) -> _Worker:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCH)}
        environment["OMP_NUM_THREADS"] = str(self.threads)
        environment["TOKENIZERS_PARALLELISM"] = "false"
        if self.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[place % len(self.devices)]
        code = f"import sys; sys.path[:] = {json.dumps(sys.path)}; from {serve.__module__} import serve; serve()"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        assert process.stdin is not None and process.stdout is not None
        inbox = Connection(os.dup(process.stdin.fileno()), readable=False)
        outbox = Connection(os.dup(process.stdout.fileno()), writable=False)
        process.stdin.close()
        process.stdout.close()
        return _Worker(process, inbox, outbox)

    def _feed(self) -> None:
        for worker in self._workers[: self.count]:
            if worker.ready and worker.task is None and self._queue and self._stopping_since is None:
                task = worker.task = self._queue.popleft()
                try:
                    if worker.knows != self._version:
                        worker.inbox.send_bytes(self._shared)
                        worker.knows = self._version
                    worker.inbox.send_bytes(packed(("train", task.config, fields_of(task.args), self.threads)))
                except OSError:
                    pass  # it is gone: its outbox says so at the next poll
                if task.bar is None:
                    task.bar = task.start_bar()

    def _hear(self, worker: _Worker, message: list) -> None:
        kind, *content = message
        task = worker.task
        if kind == "log":
            name, level, text = content
            logging.getLogger(name).log(level, "%s", text)
        elif kind == "ready":
            worker.ready = True
        elif task is None:
            return
        elif kind == "begin":
            task.bar.begin(*content)
        elif kind == "step":
            task.bar.reach(*content)
        elif kind == "loss":
            task.bar.show_loss(*content)
        elif kind == "done":
            run = self._runs[task.key] = Run.from_dict(content[0])
            task.bar.finish(run)
            worker.task = None
        elif kind == "failed":
            worker.task = None
            name, said, text = content
            error = _error(name, said)
            if isinstance(error, Preempted):  # at its checkpoint, because of us or of a signal to the whole group
                stop.reason = stop.reason or "SIGTERM to a worker process"
                self._stop_workers()
                return
            raise error if isinstance(error, MuScalingError) else error from _RemoteTraceback(text)

    def _lost(self, worker: _Worker) -> None:
        status = worker.process.wait()
        place = self._workers.index(worker)
        worker.inbox.close()
        worker.outbox.close()
        task = worker.task
        if self._stopping_since is not None:
            del self._workers[place]
            return
        how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"
        self._stillborn += not worker.ready
        if self._stillborn >= LOST_AT_MOST:
            raise TrainingError(
                f"A worker process {how} before it could train, {self._stillborn} times: see its messages above, or "
                "use placement 'together'. Finished runs are kept."
            )
        self._workers[place] = self._start(place)
        if task is None:
            return
        task.losses += 1
        if task.losses >= LOST_AT_MOST:
            raise TrainingError(
                f"The worker process that trained {task.name} {how}, {task.losses} times. If it ran out of memory, use "
                "placement 'together' or a smaller batch; its last messages are above. Finished runs are kept."
            )
        logger.warning(
            "The worker process that trained %s %s; another one continues from the run's last checkpoint.",
            task.name, how,
        )  # fmt: skip
        self._queue.appendleft(task)

    def _busy(self) -> bool:
        return any(w.task is not None for w in self._workers)

    def _stop_workers(self) -> None:
        """Pass a stop on, once; workers that take longer than `GRACE` to write their checkpoints are killed."""
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            for worker in self._workers:
                worker.process.terminate()
        elif time.monotonic() > self._stopping_since + GRACE:
            self.close(kill=True)


def _received(outbox: Connection) -> list | None:
    try:
        return json.loads(outbox.recv_bytes())
    except (EOFError, OSError):
        return None


def _error(name: str, message: str) -> Exception:
    """The error that a worker met: one of the project's own as it is, another by its name."""
    found = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, MuScalingError):
        return found(message)
    return RuntimeError(f"{name}: {message}")


class _RemoteTraceback(Exception):
    """The traceback of an error in a worker, shown as the cause of the same error here."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'
