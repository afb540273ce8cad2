"""The parts; whole processes that get signals are in tests/commands/test_resume.py."""

import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dropkey_cli.callbacks.stop_signals import StopSignals

MODULE: Any = None  # not looked at


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def trainer(launcher: object = None, *, first: bool = True) -> Any:  # noqa: ANN401 - the little of a trainer that is looked at
    return SimpleNamespace(strategy=SimpleNamespace(launcher=launcher), world_size=1, is_global_zero=first)


def saving() -> StopSignals:
    """As with a `LastCheckpoint`."""
    signals = StopSignals()
    signals.saver = True
    return signals


def test_where_nothing_saves_the_first_signal_ends() -> None:
    signals = StopSignals()
    signals.on_train_start(trainer(), MODULE)
    with pytest.raises(SystemExit, match="143"):
        signal.raise_signal(signal.SIGTERM)
    assert signals.received == 0


def test_in_training_the_first_signal_is_noted_and_the_second_ends(capfd: pytest.CaptureFixture[str]) -> None:
    signals = saving()
    signals.on_train_start(trainer(), MODULE)
    signal.raise_signal(signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    assert "stopping after this step" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit, match="143"):
        signal.raise_signal(signal.SIGTERM)


def test_a_terminals_ctrl_c_reaches_every_process_and_one_of_them_answers(capfd: pytest.CaptureFixture[str]) -> None:
    signals = saving()
    signals.on_train_start(trainer(first=False), MODULE)
    signal.raise_signal(signal.SIGINT)
    assert signals.received == signal.SIGINT
    assert capfd.readouterr().err == ""


def test_after_training_a_signal_ends_at_once() -> None:
    signals = saving()
    signals.on_train_start(trainer(), MODULE)
    signals.on_train_end(trainer(), MODULE)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_validation_start", "on_test_start", "on_predict_start"])
def test_elsewhere_a_signal_ends_at_once_and_ends_the_children(hook: str) -> None:
    killed: list[int] = []
    signals = StopSignals()
    getattr(signals, hook)(trainer(SimpleNamespace(kill=killed.append)), MODULE)
    with pytest.raises(SystemExit, match="143"):
        signal.raise_signal(signal.SIGTERM)
    assert killed == [signal.SIGKILL]
    assert signals.received == 0


def test_validation_within_training_notes_too() -> None:
    signals = saving()
    signals.on_train_start(trainer(), MODULE)
    signals.on_validation_start(trainer(), MODULE)
    signal.raise_signal(signal.SIGINT)
    assert signals.received == signal.SIGINT
    signals.on_train_end(trainer(), MODULE)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_sigusr1_is_slurms_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    StopSignals().on_train_start(trainer(), MODULE)
    assert signal.getsignal(signal.SIGUSR1) == before
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    signals = saving()
    signals.on_train_start(trainer(), MODULE)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.received == signal.SIGUSR1


def test_in_a_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=StopSignals().on_train_start, args=(trainer(), MODULE))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


def test_alone_every_wish_is_granted() -> None:
    assert [StopSignals().agreed(wish) for wish in (0, 1, 15)] == [0, 1, 15]
