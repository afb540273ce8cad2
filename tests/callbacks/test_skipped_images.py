from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn, TrainerState

from dropkey_cli.callbacks.skipped_images import SkippedImages
from dropkey_cli.errors import RunError

MODULE: Any = None  # not looked at


def trainer(*, training: bool = True) -> Any:  # noqa: ANN401 - the little of a trainer that is looked at
    state = TrainerState(fn=TrainerFn.FITTING if training else TrainerFn.VALIDATING)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(world_size=1, is_global_zero=True, state=state, strategy=strategy)


def batch(**errors: str) -> Any:  # noqa: ANN401 - a Batch
    return {"path": list(errors), "error": list(errors.values())}


def test_each_is_named_once_and_all_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = SkippedImages()
    for _ in range(2):
        skipped.on_train_batch_end(trainer(), MODULE, None, batch(a="", b="truncated", c="empty", d="", e=""), 0)
        skipped.on_train_epoch_end(trainer(), MODULE)
    skipped.on_validation_batch_end(trainer(), MODULE, None, batch(v="no image"), 0)
    skipped.on_validation_end(trainer(), MODULE)
    out, err = capsys.readouterr()
    assert err.splitlines() == ["skipped 'b': truncated", "skipped 'c': empty", "skipped 'v': no image"]
    assert out == ""
    skipped.on_train_end(trainer(), MODULE)
    assert capsys.readouterr().out == "3 unreadable images skipped: b, c, v (dropkey check lists all)\n"


def test_an_image_that_two_processes_met_counts_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(own: list[str], gathered: list[list[str]]) -> None:
        gathered[:] = [own, ["a", "c"]]

    monkeypatch.setattr(torch.distributed, "gather_object", gather)
    skipped, several = SkippedImages(), trainer()
    several.world_size = 2
    skipped.on_train_batch_end(several, MODULE, None, batch(b="empty", a="empty"), 0)
    skipped.on_train_end(several, MODULE)
    assert capsys.readouterr().out == "3 unreadable images skipped: a, b, c (dropkey check lists all)\n"


def test_many_are_only_counted(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = SkippedImages()
    skipped.on_test_batch_end(trainer(), MODULE, None, batch(**{f"x{number:02}": "empty" for number in range(30)}), 0)
    skipped.on_test_end(trainer(), MODULE)
    out, err = capsys.readouterr()
    assert err.splitlines()[-2:] == ["skipped 'x09': empty", "further unreadable images are only counted"]
    assert out == "30 unreadable images skipped: x00, x01, x02, … (dropkey check lists all)\n"


def test_nothing_is_said_where_all_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = SkippedImages()
    skipped.on_validation_batch_end(trainer(training=False), MODULE, None, batch(a="", b=""), 0)
    skipped.on_validation_end(trainer(training=False), MODULE)
    assert capsys.readouterr() == ("", "")


def test_validation_alone_counts(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = SkippedImages()
    skipped.on_validation_batch_end(trainer(training=False), MODULE, None, batch(a="empty", b=""), 0)
    skipped.on_validation_end(trainer(training=False), MODULE)
    assert capsys.readouterr().out == "1 unreadable image skipped: a (dropkey check lists all)\n"


def test_batches_of_other_data_are_let_pass(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = SkippedImages()
    for other in ([1, 2], {"image": 1}, {"path": ["a"]}, (1, {"error": "x"})):
        skipped.on_train_batch_end(trainer(), MODULE, None, other, 0)  # type: ignore[arg-type]  # any
    skipped.on_train_epoch_end(trainer(), MODULE)
    skipped.on_train_end(trainer(), MODULE)
    assert capsys.readouterr() == ("", "")


def test_a_run_on_next_to_nothing_stops() -> None:
    skipped = SkippedImages()
    skipped.on_validation_batch_end(trainer(), MODULE, None, batch(s="gone"), 0)  # before training
    skipped.on_train_start(trainer(), MODULE)
    skipped.on_train_batch_end(trainer(), MODULE, None, batch(a="", b="gone"), 0)
    skipped.on_train_epoch_end(trainer(), MODULE)  # half of them is enough
    skipped.on_train_batch_end(trainer(), MODULE, None, batch(a="", b="gone", c="gone"), 0)
    with pytest.raises(RunError, match=r"2 of 3 images could not be read: dropkey check"):
        skipped.on_train_epoch_end(trainer(), MODULE)
