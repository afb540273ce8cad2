"""Times of things to compare on a machine that others use too: interleaved rounds, and ratios within each round."""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

Call = Callable[[int], Any]
"""What is timed; its argument counts up, to choose among several copies of the inputs."""
Clock = Callable[[Callable[[], None]], float]
"""Runs a piece of work and gives its seconds."""

SAMPLE_SECONDS = 0.05
"""The least duration of one sample: calls that take less are repeated within it."""


class Quartiles(NamedTuple):
    """Where the middle half of some figures lies."""

    lower: float
    median: float
    upper: float


def quartiles(figures: Sequence[float]) -> Quartiles:
    """Quartiles of one or more figures, interpolated linearly: of 0 … 4 they are 1, 2, 3."""
    if len(figures) == 1:
        return Quartiles(figures[0], figures[0], figures[0])
    return Quartiles(*statistics.quantiles(figures, n=4, method="inclusive"))


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> Quartiles:
    """Ratio to a reference: of each round to the same round, as what disturbs a round disturbs both.

    Args:
        seconds: One figure per round.
        reference: The reference's, of the same rounds.
    """
    return quartiles([mine / theirs for mine, theirs in zip(seconds, reference, strict=True)])


def clock_for(device: torch.device, num_threads: int) -> tuple[Clock, str]:
    """The clock that disturbs and is disturbed least, and its name: see the three functions below."""
    if device.type == "cuda":
        return cuda_seconds, "CUDA events"
    return (cpu_seconds, "process CPU time") if num_threads == 1 else (wall_seconds, "wall-clock time")


def cuda_seconds(work: Callable[[], None]) -> float:
    """Seconds between two events on the current CUDA stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
    start.record()
    work()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000


def cpu_seconds(work: Callable[[], None]) -> float:
    """CPU seconds of this process, without those of other processes; with one thread these are the work's."""
    start = time.process_time()
    work()
    return time.process_time() - start


def wall_seconds(work: Callable[[], None]) -> float:
    """Seconds on the wall clock: what several threads take together."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleave(calls: Mapping[str, Call], clock: Clock, *, rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds per call of each of ``calls``, in each round.

    Every round times every call, in an order of its own, so that a slow minute of the machine meets all of them. Two calls
    of each go before: the first may compile, the second says how many repetitions a sample needs.

    Args:
        calls: What to compare, by name.
        clock: Measures one sample.
        rounds: Number of samples of each.
        seed: Of the shuffled orders.
    """
    repetitions = {}
    for name, call in calls.items():
        call(0)
        repetitions[name] = _repetitions(call, clock)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffler = list(calls), random.Random(seed)
    for number in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            samples[name].append(_sample(calls[name], clock, number, repetitions[name]))
    return samples


def _repetitions(call: Call, clock: Clock) -> int:
    """So many that a sample is long enough; a clock that ticks rarely (Windows' CPU time: 16 ms) sees none of a short call."""
    repetitions = 1
    while (seconds := clock(partial(_repeat, call, 1, repetitions))) < SAMPLE_SECONDS / 2:
        repetitions *= 2
    return math.ceil(SAMPLE_SECONDS * repetitions / seconds)


def _repeat(call: Call, first: int, repetitions: int) -> None:
    for repetition in range(repetitions):
        call(first + repetition)


def _sample(call: Call, clock: Clock, number: int, repetitions: int) -> float:
    gc.collect(1)  # what is new; a whole collection takes longer than the sample
    gc.disable()  # else a collection falls into some samples
    try:
        return clock(partial(_repeat, call, number, repetitions)) / repetitions
    finally:
        gc.enable()
