import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dropkey_cli.errors import RunError
from dropkey_cli.export.program import export_program, write_program
from dropkey_cli.export.trained import read_trained
from tests.export import checkpoints


@pytest.mark.parametrize(
    "which", ["vit", *(pytest.param(name, marks=pytest.mark.slow) for name in checkpoints.NETWORKS if name != "vit")]
)
def test_the_program_computes_the_same_on_any_batch_size(which: str, tmp_path: Path) -> None:
    network = checkpoints.save(tmp_path / "a.ckpt", which)
    size = checkpoints.NETWORKS[which][2]
    images = checkpoints.seeded_images(size)
    write_program(read_trained(tmp_path / "a.ckpt"), images, tmp_path)
    extra = {"preprocessing.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    for batch in (1, 5, 8):
        torch.testing.assert_close(program(images[:batch]), network(images[:batch]), atol=1e-5, rtol=1e-5)
    assert json.loads(extra["preprocessing.json"])["class_names"] == checkpoints.CLASSES


class Branches(nn.Module):
    """A network that looks at its images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


def test_a_network_that_cannot_be_traced() -> None:
    with pytest.raises(RunError, match=r"^torch.export cannot trace Branches for any batch size \(.*\): give --format timm$"):
        export_program(Branches(), torch.ones(8, 3, 4, 4))
