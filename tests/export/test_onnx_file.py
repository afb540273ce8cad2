import json
import sys
from pathlib import Path

import onnxruntime  # type: ignore[import-untyped]  # ships no types
import pytest
import torch

from dropkey_cli.errors import InputError
from dropkey_cli.export.onnx_file import require_onnx, write_onnx
from dropkey_cli.export.trained import read_trained
from tests.export import checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("which", checkpoints.NETWORKS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's exporter, of itself
def test_the_file_computes_the_same_on_any_batch_size(which: str, tmp_path: Path) -> None:
    network = checkpoints.save(tmp_path / "a.ckpt", which)
    size = checkpoints.NETWORKS[which][2]
    images = checkpoints.seeded_images(size)
    write_onnx(read_trained(tmp_path / "a.ckpt"), images, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 5, 8):
        (logits,) = session.run(["logits"], {"images": images[:batch].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(images[:batch]), atol=1e-4, rtol=0)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("model")] == ["model.onnx"]
    facts = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["class_names"] == checkpoints.CLASSES
    assert (facts["mean"], facts["std"], facts["image_size"]) == ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3], size)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"which is not installed: pip install 'dropkey\[onnx\]'$"):
        require_onnx()
