from __future__ import annotations

import gc
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from dropkey_cli.benchmark import timing
from dropkey_cli.benchmark.timing import (
    Quartiles,
    clock_for,
    cpu_seconds,
    cuda_seconds,
    interleave,
    paired_ratio,
    quartiles,
    wall_seconds,
)


class FakeMachine:
    """Time that passes only where the work says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[tuple[str, int]] = []

    def call(self, name: str, seconds: float) -> Callable[[int], None]:
        def call(number: int) -> None:
            self.log.append((name, number))
            self.now += seconds

        return call

    def clock(self, work: Callable[[], None]) -> float:
        before = self.now
        work()
        return self.now - before


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([4, 0, 3, 1, 2], (1, 2, 3)),
        ([1, 2], (1.25, 1.5, 1.75)),
        ([7], (7, 7, 7)),
        ([10, 20, 30, 40], (17.5, 25, 32.5)),  # positions 0.75, 1.5 and 2.25 of 0 … 3
    ],
)
def test_quartiles_by_hand(figures: list[float], expected: tuple[float, float, float]) -> None:
    assert quartiles(figures) == expected


def test_ratios_are_taken_within_a_round() -> None:
    # The machine becomes ten times slower from round to round, which every round's ratio, 3, 2 and 4, is free of;
    # the ratio of the medians would be 20 / 10 = 2, that of the means 423 / 111 = 3.8.
    assert paired_ratio([3, 20, 400], [1, 10, 100]) == Quartiles(2.5, 3, 3.5)


def test_ratio_of_different_numbers_of_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_ratio([1, 2, 3], [1, 2])


def test_seconds_per_call_of_every_round() -> None:
    machine = FakeMachine()
    seconds = interleave({"slow": machine.call("slow", 3.0), "fast": machine.call("fast", 1e-4)}, machine.clock, rounds=4)
    assert seconds["slow"] == pytest.approx([3.0] * 4)
    assert seconds["fast"] == pytest.approx([1e-4] * 4)


def test_short_calls_are_repeated_until_a_sample_is_long_enough() -> None:
    machine = FakeMachine()
    interleave({"fast": machine.call("fast", timing.SAMPLE_SECONDS / 3.5)}, machine.clock, rounds=1)
    assert len(machine.log) == 1 + (1 + 2) + 4  # warm-up, one and two to see how long they take, and 3.5 rounded up


def test_every_round_times_all_in_an_order_of_its_own() -> None:
    machine = FakeMachine()
    names = "abcdef"
    interleave({name: machine.call(name, 1.0) for name in names}, machine.clock, rounds=6)
    timed = "".join(name for name, _ in machine.log[2 * len(names) :])
    rounds = [timed[start : start + len(names)] for start in range(0, len(timed), len(names))]
    assert [sorted(order) for order in rounds] == [list(names)] * 6
    assert len(set(rounds)) > 1


def test_the_order_follows_the_seed() -> None:
    def order(seed: int) -> list[tuple[str, int]]:
        machine = FakeMachine()
        interleave({name: machine.call(name, 1.0) for name in "abcdef"}, machine.clock, rounds=3, seed=seed)
        return machine.log

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_all_calls_of_a_round_begin_with_the_same_copy_of_the_inputs_and_rounds_rotate() -> None:
    machine = FakeMachine()
    interleave({"a": machine.call("a", 1.0), "b": machine.call("b", timing.SAMPLE_SECONDS / 1.5)}, machine.clock, rounds=3)
    numbers = {name: [number for who, number in machine.log if who == name][2:] for name in "ab"}
    assert numbers == {"a": [0, 1, 2], "b": [0, 1, 1, 2, 2, 3]}


def test_an_error_within_a_sample_leaves_garbage_collection_on() -> None:
    def call(number: int) -> None:
        if not gc.isenabled():
            raise ZeroDivisionError("in a sample")

    with pytest.raises(ZeroDivisionError, match="in a sample"):
        interleave({"a": call}, wall_seconds, rounds=1)
    assert gc.isenabled()


def test_what_a_sample_leaves_is_collected_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    monkeypatch.setattr(gc, "collect", lambda generation: machine.log.append(("collect", generation)))
    interleave({name: machine.call(name, 1.0) for name in "ab"}, machine.clock, rounds=3)
    assert [name == "collect" for name, _ in machine.log[4:]] == [True, False] * 6
    assert {generation for name, generation in machine.log if name == "collect"} == {1}


def test_a_clock_that_ticks_rarely_sees_short_calls_too() -> None:
    machine = FakeMachine()

    def ticks(work: Callable[[], None]) -> float:
        before = machine.now
        work()
        return 0.016 * (math.floor(machine.now / 0.016) - math.floor(before / 0.016))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "SAMPLE_SECONDS", 0.05)
        interleave({"short": machine.call("short", 1e-4)}, ticks, rounds=1)
    assert machine.now < 4 * 0.05  # the search and one sample
    samples = [index for index, (_, number) in enumerate(machine.log) if number == 0]
    assert len(machine.log) - samples[-1] == pytest.approx(500, rel=0.5)  # of which 0.05 s are made


def test_cuda_events_are_recorded_around_the_work_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 250.0  # torch gives milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert cuda_seconds(lambda: log.append("work")) == 0.25
    assert log == ["record", "work", "record", "wait"]


def test_cpu_time_and_wall_clock_time_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = SimpleNamespace(process_time=iter([1.0, 3.0]).__next__, perf_counter=iter([10.0, 40.0]).__next__)
    monkeypatch.setattr(timing, "time", clocks)
    assert (cpu_seconds(lambda: None), wall_seconds(lambda: None)) == (2, 30)


def test_the_clock_fits_the_device() -> None:
    assert clock_for(torch.device("cuda"), 1)[0] is cuda_seconds
    assert clock_for(torch.device("cpu"), 1) == (cpu_seconds, "process CPU time")
    assert clock_for(torch.device("cpu"), 2) == (wall_seconds, "wall-clock time")  # CPU time would add the threads up
