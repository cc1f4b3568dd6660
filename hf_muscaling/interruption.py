"""A request to stop: SIGTERM (pre-emption) or the end of the launcher. Training looks at it between steps. No torch."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hf_muscaling.errors import Preempted


class StopRequest:
    """Whether this process was asked to stop, and by what."""

    def __init__(self) -> None:
        self.reason = ""
        self.deferring = 0
        # A launcher that dies leaves its processes behind; only one of theirs may take a new parent for its end.
        accelerate = {"ACCELERATE_DYNAMO_MODE", "ACCELERATE_USE_CPU"} <= os.environ.keys()
        launched = accelerate or "TORCHELASTIC_RUN_ID" in os.environ
        self._launcher = os.getppid() if launched else None

    @property
    def asked(self) -> bool:
        """Whether to stop."""
        if not self.reason and self._launcher is not None and os.getppid() != self._launcher:
            self.reason = "its launcher has ended"
        return bool(self.reason)

    def check(self) -> None:
        """Raise Preempted if asked to stop."""
        if self.asked:
            raise Preempted(f"Stopped ({self.reason}). Finished runs are kept; the same command continues.")

    def handle(self, number: int, frame: object) -> None:
        """Take note of a signal; outside of training stop at once."""
        self.reason = signal.Signals(number).name
        if not self.deferring:
            self.check()


stop = StopRequest()
"""The request to this process."""


@contextmanager
def listening(deferring: bool = False) -> Iterator[None]:
    """Turn SIGTERM into `Preempted` while the block runs; with `deferring`, into a request that the block looks at.

    Does nothing in a thread, where Python has no signals.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop.handle) if main else None
    if main and before != stop.handle:
        stop.reason = ""  # a request to an earlier job of this process
    stop.deferring += deferring
    try:
        yield
    finally:
        stop.deferring -= deferring
        if main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
