import errno
import os
from pathlib import Path

import pytest
import torch

from dropkey_cli.commands.checkpoint_io import DurableCheckpointIO
from dropkey_cli.errors import RunError

STATE = {"weights": torch.arange(1000), "epoch": 3}


def test_what_is_saved_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(STATE, path)
    loaded = DurableCheckpointIO().load_checkpoint(path, weights_only=True)
    assert torch.equal(loaded["weights"], STATE["weights"])  # type: ignore[arg-type]  # a tensor
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_full_disk_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(STATE, path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        RunError,
        match=r"cannot write .*last\.ckpt' \(No space left on device\); the one before is intact.*--resume .*version_0$",
    ):
        DurableCheckpointIO().save_checkpoint({**STATE, "epoch": 4}, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        RunError, match=r"cannot write the checkpoint '.*file/best\.ckpt' \((File exists|Not a directory)\): free"
    ):
        DurableCheckpointIO().save_checkpoint(STATE, tmp_path / "file" / "best.ckpt")
