"""Commands in processes of their own, forked from the tests' process, which has imported everything already."""

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.cli import main

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
RUN = Path("runs/quickstart/version_0")


def start(
    words: Sequence[str],
    folder: Path,
    *,
    prepare: Callable[[], object] = lambda: None,
    seconds: float = 0.0,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Begin a command in a folder; its output goes to the file log there. Gives the process's number.

    Args:
        words: The command.
        folder: Its working folder.
        prepare: Called in the new process first.
        seconds: Kill it after so long, wherever it is; 0 lets it live.
        environment: Further environment variables.
    """
    if hasattr(forkserver, "_forkserver"):  # one that an earlier test has started is no child of the new process
        forkserver._forkserver._stop()  # type: ignore[attr-defined]  # what CPython's own tests call
    process = os.fork()
    if process:
        return process
    code, environment = 99, environment or {}
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # nobody handles SIGALRM: it kills as kill -9 does
        os.chdir(folder)
        os.environ.update(environment)
        vars(rank_zero_only)["rank"] = int(environment.get("LOCAL_RANK", 0))  # else read from the environment on import
        log = os.open(f"log.{environment.get('LOCAL_RANK', 0)}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        prepare()
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end(process: int) -> int:
    """Wait for a process; its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(words: Sequence[str], folder: Path, **options: Any) -> int:  # noqa: ANN401 - those of start
    """A command from start to end."""
    return end(start(words, folder, **options))


def run_on(count: int, words: Sequence[str], folder: Path, **options: Any) -> list[int]:  # noqa: ANN401 - those of start
    """A command on several gloo processes, as a launcher starts them; their exit codes."""
    port = _free_port()
    words = [*words, "--trainer.accelerator=cpu", f"--trainer.devices={count}"]
    places = [{"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in range(count)]
    return [end(process) for process in [start(words, folder, environment=place, **options) for place in places]]


def run_fresh_on(count: int, words: Sequence[str], folder: Path) -> list[int]:
    """As `run_on`, in processes that are not forked: one of some hundred forked FSDP2 processes ended in a segfault."""
    program = "import os, sys; from dropkey_cli.cli import main; code = main(); sys.stdout.flush(); os._exit(code)"
    words = [*words, "--trainer.accelerator=cpu", f"--trainer.devices={count}"]
    place = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    processes = []
    for rank in range(count):
        with (folder / f"log.{rank}").open("a", encoding="utf-8") as file:
            command, environment = [sys.executable, "-c", program, *words], {**place, "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file))
    return [process.wait(timeout=300) for process in processes]


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def log(folder: Path, rank: int = 0) -> str:
    """What a process has printed so far."""
    file = folder / f"log.{rank}"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def signal_itself(number: int, *, batch: int, to_all: bool = False) -> Callable[[], object]:
    """What makes a process send itself a signal at its n-th training batch, counted from 1.

    Args:
        number: The signal.
        batch: When.
        to_all: Send it to the processes that load images, too, as a terminal does.
    """

    def prepare() -> None:
        if to_all:
            os.setsid()
        original, seen = BatchSeeds.on_train_batch_start, []

        def counting(self: BatchSeeds, *arguments: Any) -> None:  # noqa: ANN401 - the hook's
            seen.append(0)
            if len(seen) == batch:
                (os.killpg if to_all else os.kill)(os.getpid(), number)
            original(self, *arguments)

        BatchSeeds.on_train_batch_start = counting  # type: ignore[assignment, method-assign]  # in a process of its own

    return prepare


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Until something holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)
