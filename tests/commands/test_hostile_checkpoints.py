"""Checkpoints from strangers: the commands refuse them in one line, and nothing in them runs."""

import operator
import os
import pickle
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

VERSION = Path("runs/quickstart/version_0")
Refused = Callable[..., str]


class Payload:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code_ran",)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_with_code_is_refused_by_every_command(command: str, trained: Path, refused: Refused) -> None:
    good = torch.load(trained / VERSION / "checkpoints/best.ckpt", weights_only=True)
    torch.save({**good, "more": Payload()}, "zip.ckpt")
    torch.save({**good, "more": Payload()}, "old.ckpt", _use_new_zipfile_serialization=False)
    Path("pickle.ckpt").write_bytes(pickle.dumps(Payload()))
    for name in ("zip.ckpt", "old.ckpt", "pickle.ckpt"):
        line = refused(command, "--ckpt_path", name)
        assert line.startswith(f"{name!r} is no checkpoint that can be loaded safely (")
        assert "unknown option --weights_only" in refused(command, "--ckpt_path", name, "--weights_only", "false")
        assert not Path("code_ran").exists()
    torch.load("zip.ckpt", weights_only=False)
    assert Path("code_ran").exists()


@pytest.mark.parametrize("init_args", [{}, {"dropkey": "stranger.Model"}])
def test_a_checkpoint_imports_no_module_beside_it(
    init_args: dict[str, str], trained: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = torch.load(trained / VERSION / "checkpoints/best.ckpt", weights_only=True)
    model = checkpoint["dropkey"]["config"]["model"]
    model["init_args"] |= init_args
    model["class_path"] = model["class_path"] if init_args else "stranger.Model"
    torch.save(checkpoint, "stranger.Model.ckpt")
    Path("stranger.py").write_text("import os; os.mkdir('code_ran')")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert "'stranger.Model'" in refused("predict", "--ckpt_path", "stranger.Model.ckpt", "--data.root", "x.png")
    assert not Path("code_ran").exists()


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (["state_dict"], [None, [1]]),
        (["loops"], [3, {}]),
        (["pytorch-lightning_version"], [3, "x"]),
        (["state_dict", "network.pos_embed"], [None, "x", torch.ones(2)]),
        (["dropkey"], [None, [1]]),
        (["dropkey", "model"], [None, {}]),
        (["dropkey", "class_names"], [None, 3, ["a"], [1, 2], ["a", "b"]]),
        (["dropkey", "preprocessing"], [None, "x", {"image_size": "x"}, {"image_size": -1}, {"mean": [1]}, {"crop_mode": "x"}]),
        (["dropkey", "config"], [None, {}, {"model": 3, "data": 3}]),
        (["dropkey", "config", "model", "class_path"], [None, 3, "", "dropkey_cli.nothing.Model", "dropkey_cli.cli.main"]),
        (
            ["dropkey", "config", "model", "init_args"],
            [3, {"model_name": 3}, {"model_name": "x"}, {"dropkey": {"ratio": "x"}}],
        ),
    ],
    ids=str,
)
def test_a_checkpoint_that_says_what_cannot_be_is_refused_in_a_line(
    keys: list[str], values: list[Any], trained: Path, refused: Refused
) -> None:
    Image.new("RGB", (9, 9)).save("a.png")
    for value in values:
        checkpoint = torch.load(trained / VERSION / "checkpoints/best.ckpt", weights_only=True)
        *path, last = keys
        reduce(operator.getitem, path, checkpoint)[last] = value
        torch.save(checkpoint, "x.ckpt")
        refused("predict", "--ckpt_path", "x.ckpt", "--data.root", "a.png")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_is_refused(share: float, trained: Path, refused: Refused) -> None:
    data = (trained / VERSION / "checkpoints/best.ckpt").read_bytes()
    Path("x.ckpt").write_bytes(data[: int(share * len(data))])
    assert refused("predict", "--ckpt_path", "x.ckpt").startswith("'x.ckpt' is no checkpoint that can be loaded safely (")
