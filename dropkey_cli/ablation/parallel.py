"""Jobs in processes of their own, several at a time; a signal reaches all of them, once."""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import Thread
from types import FrameType
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

SECONDS_TO_SAVE = 60.0
MOMENT = 0.5
"""Seconds after which a signal is seen."""
Job = TypeVar("Job")


class Ended(NamedTuple, Generic[Job]):
    """A job that has ended.

    Args:
        job: The job.
        code: The exit code of its process; minus the number of the signal that ended it.
        seconds: How long it took.
    """

    job: Job
    code: int
    seconds: float


def run_jobs(
    work: Callable[[Job, int], None], jobs: Sequence[Job], *, num_slots: int, preload: list[str]
) -> Generator[Ended[Job], None, None]:
    """Run all jobs, in order, and give each as it ends.

    Where the system can, the processes are forked from one that has imported ``preload``, and so start at once. Each leads a
    process group: Ctrl-C in a terminal reaches this process alone, which then ends the others as it is ended.

    Args:
        work: Called in a process for each job, with the job and the number of its slot, 0 … ``num_slots`` - 1: no two jobs
            have the same at a time. Both must be picklable.
        jobs: The jobs.
        num_slots: How many run at a time.
        preload: Modules that the work imports.
    """
    forks = "forkserver" in get_all_start_methods()
    context: Any = get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(preload)
    waiting, free = deque(jobs), deque(range(num_slots))
    running: dict[int, tuple[BaseProcess, Job, int, float]] = {}
    with _noted_signals() as received:
        try:
            while waiting or running:
                while waiting and free and not received:
                    job, slot = waiting.popleft(), free.popleft()
                    process = context.Process(target=_lead, args=(work, job, slot))
                    process.start()
                    running[process.sentinel] = (process, job, slot, time.monotonic())
                for sentinel in wait(list(running), timeout=MOMENT):
                    process, job, slot, start = running.pop(sentinel)  # type: ignore[arg-type]  # the keys waited for
                    process.join()
                    free.append(slot)
                    yield Ended(job, process.exitcode or 0, time.monotonic() - start)
                if received:
                    _leave(received[0])
        finally:
            _end([process for process, *_ in running.values()])


def _lead(work: Callable[[Job, int], None], job: Job, slot: int) -> None:
    if hasattr(os, "setsid"):
        os.setsid()
    Thread(target=_end_with_parent, daemon=True).start()
    work(job, slot)


def _end_with_parent() -> None:
    """End this process as if asked to, once the one that started it is gone, even by kill -9: nobody reads its result."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _end(processes: list[BaseProcess]) -> None:
    """Ask them to save and end; kill those that don't, also if somebody asks again."""
    if processes:
        print(f"waiting until {len(processes)} jobs have saved; Ctrl-C again does not wait", file=sys.stderr, flush=True)
    for process in processes:
        process.terminate()
    limit = time.monotonic() + SECONDS_TO_SAVE
    try:
        for process in processes:
            process.join(max(0.0, limit - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM, lest they come between the start of a process and its being known; a second one acts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            _leave(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int) -> NoReturn:
    """End as the signal would have it: Ctrl-C as an exception of its own, SIGTERM with exit code 143."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
