import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dropkey_cli.callbacks.run_log import RunLog, note, say

MODULE: Any = None  # not looked at
FIRST: Any = SimpleNamespace(is_global_zero=True)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RunLog]:
    log = RunLog(tmp_path, "dropkey fit --x 1")
    yield log
    log.close()


def begin(log: RunLog) -> None:
    log.on_train_batch_start(FIRST, MODULE, None, 0)


def lines(folder: Path) -> list[str]:
    """What the file says, of which every line begins with the time."""
    found = (folder / "run.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in found)
    return [line[21:] for line in found]


def test_what_is_said_is_printed_and_kept(log: RunLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(FIRST, MODULE, "fit")
    say("the plan")
    note("in the log only")
    begin(log)
    say("wrong", error=True)
    assert lines(tmp_path) == ["dropkey fit --x 1", "the plan", "in the log only", "wrong"]  # before it is closed
    assert capsys.readouterr() == ("the plan\n", "wrong\n")


def test_a_run_that_never_begins_leaves_no_file(log: RunLog, tmp_path: Path) -> None:
    log.setup(FIRST, MODULE, "fit")
    say("the plan")
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_goes_on_in_the_file(log: RunLog, tmp_path: Path) -> None:
    for _ in range(2):
        log.setup(FIRST, MODULE, "fit")
        begin(log)
        begin(log)
        say("a line")
        log.close()
        say("nobody listens")
    assert lines(tmp_path) == ["dropkey fit --x 1", "a line"] * 2


def test_only_the_first_process_and_only_runs_with_a_folder_write(log: RunLog, tmp_path: Path) -> None:
    log.setup(SimpleNamespace(is_global_zero=False), MODULE, "fit")  # type: ignore[arg-type]  # all that is looked at
    begin(log)
    nowhere = RunLog(None, "dropkey fit")
    nowhere.setup(FIRST, MODULE, "fit")
    begin(nowhere)
    nowhere.close()
    say("a line")
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_kept_and_shown_as_before(log: RunLog, tmp_path: Path) -> None:
    shown: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: shown.append(str(message))
        before = warnings.showwarning
        log.setup(FIRST, MODULE, "fit")
        begin(log)
        warnings.warn("of two\n  lines", stacklevel=1)
        log.close()
        assert warnings.showwarning is before
    assert shown == ["of two\n  lines"]
    assert lines(tmp_path)[1:] == ["warning: of two lines"]


def test_warnings_of_lightnings_and_timms_loggers_are_kept(log: RunLog, tmp_path: Path) -> None:
    log.setup(FIRST, MODULE, "fit")
    begin(log)
    logging.getLogger("lightning.pytorch.trainer").warning("of Lightning")
    logging.getLogger("timm.models").error("of timm")
    logging.getLogger("timm.models").info("not this")
    log.close()
    logging.getLogger("timm.models").error("nobody listens")
    assert lines(tmp_path)[1:] == ["warning: of Lightning", "error: of timm"]


def test_an_error_is_kept_and_a_stop_that_was_asked_for_is_none(log: RunLog, tmp_path: Path) -> None:
    log.setup(FIRST, MODULE, "fit")
    begin(log)
    log.on_exception(FIRST, MODULE, KeyboardInterrupt())
    log.on_exception(FIRST, MODULE, SystemExit(143))
    log.on_exception(FIRST, MODULE, ValueError("a\nb"))
    assert lines(tmp_path)[1:] == ["error: ValueError: a b"]
