import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dropkey_cli.data.preprocessing import eval_transform
from dropkey_cli.data.reading import load_image
from dropkey_cli.errors import InputError, RunError
from dropkey_cli.export import exporting
from dropkey_cli.export.comparing import Run
from dropkey_cli.export.exporting import Form, check_output, export
from dropkey_cli.export.trained import Trained, read_trained
from tests.export import checkpoints

WORDS = ["dropkey", "export"]


def test_the_snippet_in_the_card_runs_in_a_python_without_dropkey(photos: Path, tmp_path: Path) -> None:
    network = checkpoints.save(tmp_path / "a.ckpt", root=str(photos))
    trained = read_trained(tmp_path / "a.ckpt")
    (row,), images = export(trained, ["timm"], tmp_path / "out", images=None, title="lions", words=WORDS)
    assert row.difference == 0
    assert row.file == tmp_path / "out" / "model.safetensors"
    assert images == f"8 images of {photos}"
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    image = photos / "train/Löwe/3.png"
    program = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace("FOLDER", str(tmp_path / "out"))
    program = program.replace("image.jpg", str(image)) + "\nimport sys\nassert 'dropkey_cli' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, encoding="utf-8", env=environment, check=True
    )
    pixels = eval_transform(trained.preprocessing)(load_image(image))
    expected = network(trained.preprocessing.normalize(pixels[None])).softmax(-1)[0]
    name, _, probability = done.stdout.strip().rpartition(" ")
    assert name == checkpoints.CLASSES[int(expected.argmax())]
    assert float(probability) == pytest.approx(expected.max().item(), abs=1e-5)


def test_a_form_that_computes_something_else_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(trained: Trained, images: Tensor, folder: Path) -> Run:
        (folder / "model.onnx").write_text("x")
        return lambda images: trained.network(images) + 0.01

    monkeypatch.setitem(exporting.FORMS, "onnx", Form(write, "model.onnx"))
    checkpoints.save(tmp_path / "a.ckpt")
    trained = read_trained(tmp_path / "a.ckpt")
    with pytest.raises(RunError, match=r"^the onnx export differs from the network by 0\.01"):
        export(trained, ["timm", "onnx"], tmp_path / "sub" / "out", images=None, title="x", words=WORDS)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["a.ckpt"]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_output(tmp_path / "out")  # empty
    (tmp_path / "out/mine.txt").write_text("x")
    for output in (tmp_path / "out", tmp_path / "out/mine.txt"):
        with pytest.raises(InputError, match="is there already: give another folder, or remove it first"):
            check_output(output)


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.ckpt")
    with pytest.raises(RunError, match=r"^writing '\S+a.ckpt/out' failed \(.*\): free some space, or give another --output$"):
        export(read_trained(tmp_path / "a.ckpt"), ["timm"], tmp_path / "a.ckpt/out", images=None, title="x", words=WORDS)


def test_dropkey_leaves_no_trace(tmp_path: Path) -> None:
    from dropkey_cli import DropKeySettings, apply_dropkey

    checkpoints.save(tmp_path / "a.ckpt")
    trained = read_trained(tmp_path / "a.ckpt")
    assert not [name for name, module in trained.network.named_modules() if type(module).__module__.startswith("dropkey_cli.")]
    patched = checkpoints.seeded_network(*checkpoints.NETWORKS["vit"])
    apply_dropkey(patched, DropKeySettings(ratio=0.5))
    images = torch.randn(2, 3, 40, 40)
    assert torch.equal(patched.eval()(images), trained.network(images))
    assert not torch.equal(patched.train()(images), trained.network(images))
