import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from dropkey_cli.ablation.parallel import Ended, run_jobs

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # Python 3.12 on: this process has threads
]


def work(job: tuple[Path, str], slot: int) -> None:
    """Leaves a file, and waits, fails or is killed, as the job says."""
    folder, what = job
    (folder / f"{what}.slot").write_text(str(slot))
    if what == "fail":
        os._exit(3)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait":
        signal.signal(signal.SIGTERM, lambda *_: (folder / "saved").write_text("yes") and os._exit(143))
        (folder / "ready").touch()
        time.sleep(60)


def test_every_job_runs_once_and_its_end_is_told(tmp_path: Path) -> None:
    jobs = [(tmp_path, what) for what in ("a", "b", "fail", "kill", "c")]
    ended = list(run_jobs(work, jobs, num_slots=2, preload=[]))
    assert {one.job[1]: one.code for one in ended} == {"a": 0, "b": 0, "fail": 3, "kill": -9, "c": 0}
    assert all(one.seconds > 0 for one in ended)
    assert {file.read_text() for file in tmp_path.glob("*.slot")} == {"0", "1"}


def test_jobs_that_run_are_asked_to_save_when_nobody_waits_for_more(tmp_path: Path) -> None:
    with closing(run_jobs(work, [(tmp_path, "a"), (tmp_path, "wait"), (tmp_path, "b")], num_slots=1, preload=[])) as running:
        assert isinstance(next(running), Ended)
        with pytest.raises(KeyboardInterrupt):
            _interrupt_when_ready(tmp_path)
            next(running)
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "b.slot").exists()


def _interrupt_when_ready(folder: Path) -> None:
    parent = os.getpid()
    if os.fork() == 0:
        limit = time.monotonic() + 60
        while not (folder / "ready").exists() and time.monotonic() < limit:
            time.sleep(0.01)
        os.kill(parent, signal.SIGINT)
        os._exit(0)


def test_sigterm_ends_the_jobs_and_then_this_process_with_143(tmp_path: Path) -> None:
    running = run_jobs(work, [(tmp_path, "wait")], num_slots=1, preload=[])
    parent = os.getpid()
    if os.fork() == 0:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(parent, signal.SIGTERM)
        os._exit(0)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        next(running)
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_jobs_are_asked_to_save_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from dropkey_cli.ablation.parallel import run_jobs\n"
    program += "from tests.ablation.test_parallel import work\n"
    program += "list(run_jobs(work, [(Path(sys.argv[1]), 'wait')], num_slots=1, preload=[]))"
    parent = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", program, str(tmp_path)])
    _wait_for(tmp_path / "ready")
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    _wait_for(tmp_path / "saved")


def _wait_for(file: Path) -> None:
    limit = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < limit, file
        time.sleep(0.01)
