from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dropkey_cli.callbacks.run_record import RunRecord

CONFIG = "trainer: {max_epochs: 2}\nmodel:\n  class_path: a.B\n  init_args: {lr: null}\ndata: {class_path: c.D}\nname: é\n"
MODULE: Any = None  # not looked at
DATA = SimpleNamespace(splits={"train": [1, 2, 3], "val": iter([1])})  # a stream has no length


def trainer(*, is_global_zero: bool = True) -> Any:  # noqa: ANN401
    return SimpleNamespace(datamodule=DATA, is_global_zero=is_global_zero)


def test_config_is_written_as_it_was_asked_for(tmp_path: Path) -> None:
    RunRecord(tmp_path, CONFIG).on_train_batch_start(trainer(), MODULE, None, 0)
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == CONFIG


def test_the_file_is_looked_at_once(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, CONFIG)
    record.on_train_batch_start(trainer(), MODULE, None, 0)
    (tmp_path / "config.yaml").unlink()
    record.on_train_batch_start(trainer(), MODULE, None, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_keeps_its_config_and_one_with_other_options_keeps_both(tmp_path: Path) -> None:
    for config in (CONFIG, CONFIG):
        RunRecord(tmp_path, config).on_train_batch_start(trainer(), MODULE, None, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    longer = CONFIG.replace("max_epochs: 2", "max_epochs: 3")
    RunRecord(tmp_path, longer).on_train_batch_start(trainer(), MODULE, None, 0)
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == longer
    assert (tmp_path / "config.1.yaml").read_text(encoding="utf-8") == CONFIG


def test_other_processes_and_runs_without_a_folder_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RunRecord(tmp_path, CONFIG).on_train_batch_start(trainer(is_global_zero=False), MODULE, None, 0)
    RunRecord(None, CONFIG).on_train_batch_start(trainer(), MODULE, None, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checkpoint", [{}, {"dropkey": {"class_names": ["a"]}}])
def test_checkpoints_hold_the_options_of_model_and_data(checkpoint: dict[str, Any]) -> None:
    record, earlier = RunRecord(None, CONFIG), dict[str, Any]()
    record.on_save_checkpoint(trainer(), MODULE, earlier)
    earlier["dropkey"]["config"]["model"]["class_path"] = "changed"  # by another callback, which must reach no other checkpoint
    record.on_save_checkpoint(trainer(), MODULE, checkpoint)
    config = {"model": {"class_path": "a.B", "init_args": {"lr": None}}, "data": {"class_path": "c.D"}}
    assert checkpoint["dropkey"].pop("config") == config
    assert checkpoint["dropkey"].pop("images") == {"train": 3}
    assert checkpoint["dropkey"] in ({}, {"class_names": ["a"]})
