"""Which runs of a series share all processes and which are trained side by side, one process each: plain arithmetic.

A lane is what one run can be given alone: a CPU thread, a device, or a process of `accelerate launch`. Several lanes
speed one run up by less than their number, the less the narrower the model, so that small runs gain from lying side by
side; a few large ones at the end would leave lanes idle, so that those gain from all lanes together.

The plan is a function of the runs' FLOPs, the number of lanes and the mode alone, never of what is finished, of the
load, or of the clock: on one machine the same command gives every run the same number of threads, and thus the same
float sums to the last bit.
"""

import heapq
import os
from collections.abc import Sequence
from dataclasses import dataclass

from hf_muscaling.errors import ConfigurationError

PLACEMENTS = ("auto", "together", "apart")
PARALLEL_SHARE = 0.75
"""Share p of a step that several lanes divide among them: speed-up 1/(1 − p + p/lanes), 1.6 for two (Amdahl's law).

Seen on two idle cores for widths 64 to 256 (1.5 to 1.6); wider models reach 1.9.
"""
RATE = {"cpu": 8e10, "cuda": 5e13}
"""Cost units (`run_cost`, about FLOPs) a second of one lane; only weighs the start of a worker against the runs."""
START = 6.0
"""Seconds in which a worker process imports torch and transformers."""
GAIN = 0.95
"""`auto` starts workers only if they are expected to take less than this share of the time without them."""


@dataclass(frozen=True)
class Placement:
    """Where the runs of one phase go: indices into its list of runs.

    `together` are trained one after the other on all lanes, then `apart`, in this order (largest first), on `workers`
    lanes of `width` basic lanes each. `seconds` is the expected time, good for comparing plans only.
    """

    together: tuple[int, ...]
    apart: tuple[int, ...]
    workers: int = 1
    width: int = 1
    seconds: float = 0.0


def place(
    costs: Sequence[float],
    lanes: int,
    mode: str = "auto",
    *,
    memory: Sequence[float] | None = None,
    memory_limit: float = float("inf"),
    lane_memory: float = float("inf"),
    rate: float = RATE["cpu"],
    own_lane: bool = True,
    wide: bool = True,
) -> Placement:
    """Return the placement of runs with these costs on so many lanes.

    `apart` gives every run one lane, `together` all of them. `auto` compares: for every number k, the k costliest
    together and the rest apart, on workers of 1, 2, 4 … lanes, longest first onto the lane that is free first (at most
    4/3 of the best schedule, Graham 1969), and takes the shortest if it saves 5 % or more. `memory` are the runs'
    bytes: workers are fewer where the largest runs do not fit side by side into `memory_limit`, and runs that need more
    than `lane_memory` are trained together. Without `own_lane` the process that asks trains nothing itself, and every
    lane waits for its worker's start. Lanes that are not `wide` (devices, processes) cannot be joined to a worker.

    Raises ConfigurationError for an unknown mode. Example:

    >>> place([9e12] * 8, lanes=2).apart
    (0, 1, 2, 3, 4, 5, 6, 7)
    >>> plan = place([4e12] * 8 + [4.8e13], lanes=2)
    >>> plan.together, plan.apart, plan.workers
    ((8,), (0, 1, 2, 3, 4, 5, 6, 7), 2)
    """
    if mode not in PLACEMENTS:
        raise ConfigurationError(f"placement={mode!r} is unknown; use one of {', '.join(PLACEMENTS)}.")
    large = [k for k in range(len(costs)) if memory is not None and memory[k] > lane_memory]
    order = sorted(range(len(costs)), key=lambda k: (k not in large, -costs[k], k))
    everything = Placement(tuple(range(len(costs))), (), seconds=sum(costs) / (rate * speed_up(lanes)))
    if mode == "together" or (mode == "auto" and lanes == 1):
        return everything

    def plan(k: int, width: int) -> Placement:
        rest = order[k:]
        workers = _fitting(rest, max(min(lanes // width, len(rest)), 1), memory, memory_limit)
        before = sum(costs[i] for i in order[:k]) / (rate * speed_up(lanes))
        if workers > own_lane:
            before += min(START, before) / lanes  # the workers' imports take turns with the runs trained meanwhile
        starts = [0.0 if lane == 0 and own_lane else max(START - before, 0.0) for lane in range(workers)]
        _, span = assign([costs[i] / (rate * speed_up(width)) for i in rest], starts)
        return Placement(tuple(sorted(order[:k])), tuple(rest), workers, width, before + span)

    if mode == "apart":
        return plan(len(large), 1)
    widths = [2**e for e in range(lanes.bit_length()) if 2**e < lanes] if wide else [1]
    plans = (plan(k, w) for w in widths for k in range(len(large), len(costs)))
    best = min(plans, key=lambda p: p.seconds, default=everything)
    return best if best.workers > 1 and best.seconds < GAIN * everything.seconds else everything


def assign(seconds: Sequence[float], starts: Sequence[float]) -> tuple[list[int], float]:
    """Return each run's lane, given in order to the lane that is free first, and the time when the last one ends.

    >>> assign([5.0, 4.0, 3.0, 3.0], [0.0, 0.0])
    ([0, 1, 1, 0], 8.0)
    """
    free = [(start, lane) for lane, start in enumerate(starts)]
    heapq.heapify(free)
    lanes = []
    end = 0.0
    for duration in seconds:
        start, lane = heapq.heappop(free)
        lanes.append(lane)
        end = max(end, start + duration)
        heapq.heappush(free, (start + duration, lane))
    return lanes, end


def speed_up(lanes: int) -> float:
    """Return how many times faster one run is on so many lanes: 1/(1 − p + p/lanes), p = `PARALLEL_SHARE`."""
    return 1 / (1 - PARALLEL_SHARE + PARALLEL_SHARE / lanes)


def machine_memory() -> float:
    """Return the bytes of memory that this machine, or the container's limit, has; infinite where it cannot be told."""
    try:
        limit = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not POSIX
        return float("inf")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as handle:
            return min(limit, float(handle.read()))
    except (OSError, ValueError):  # no control group, or "max"
        return limit


def _fitting(rest: Sequence[int], workers: int, memory: Sequence[float] | None, limit: float) -> int:
    if memory is None:
        return workers
    largest = sorted((memory[i] for i in rest), reverse=True)
    while workers > 1 and sum(largest[:workers]) > limit:
        workers -= 1
    return workers
