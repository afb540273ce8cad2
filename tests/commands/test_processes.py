import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy

from dropkey_cli.commands import processes
from dropkey_cli.commands.fsdp import FullySharded
from dropkey_cli.commands.processes import check_processes, end_children, lost_process


def trainer(strategy: Strategy, devices: int = 1, *callbacks: Callback) -> Any:  # noqa: ANN401 - what of a trainer is looked at
    return SimpleNamespace(accelerator=CPUAccelerator(), num_devices=devices, strategy=strategy, callbacks=callbacks)


@pytest.mark.parametrize("strategy", [DDPStrategy(), FullySharded()])
def test_what_runs_is_not_refused(strategy: Strategy) -> None:
    check_processes(trainer(strategy, 2))


def test_more_processes_than_the_machine_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    check_processes(trainer(DDPStrategy(), 8))
    with pytest.raises(ValueError, match=r"9 CPU processes on 2 cores, give --trainer\.devices 8 or less"):
        check_processes(trainer(DDPStrategy(), 9))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (FSDPStrategy(), "give --trainer.strategy fsdp2"),
        (ModelParallelStrategy(), "give the strategy save_distributed_checkpoint: false"),
    ],
)
def test_strategies_without_a_usable_checkpoint(strategy: Strategy, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_processes(trainer(strategy))


def test_no_averaged_copy_of_a_sharded_network() -> None:
    check_processes(trainer(DDPStrategy(), 2, EMAWeightAveraging()))
    with pytest.raises(ValueError, match=r"leave weight averaging out or give --trainer\.strategy ddp"):
        check_processes(trainer(FullySharded(), 2, EMAWeightAveraging()))


def test_what_a_lost_process_looks_like() -> None:
    assert lost_process(RuntimeError("[pair.cc:545] Read error [127.0.0.1]:950: Connection reset by peer. GLHF!"))
    assert lost_process(RuntimeError("[pair.cc:538] Connection closed by peer [127.0.0.1]:41207"))
    assert not lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lost_process(ConnectionResetError("Connection reset by peer"))


def test_no_child_outlives_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SECONDS_TO_END", 0.1)
    ending, waiting = (subprocess.Popen([sys.executable, "-c", program]) for program in ("", "import time; time.sleep(600)"))
    ending.wait()
    end_children(SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[waiting, ending]))))  # type: ignore[arg-type]  # the little that is looked at
    assert (ending.wait(), waiting.wait() != 0) == (0, True)


def test_a_run_without_children_has_none_to_end() -> None:
    end_children(SimpleNamespace(strategy=SimpleNamespace(launcher=None)))  # type: ignore[arg-type]  # the little that is looked at
