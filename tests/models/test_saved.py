from pathlib import Path

import pytest
import torch

from dropkey_cli.errors import InputError
from dropkey_cli.models.saved import load_network, network_tensors
from tests.export import checkpoints


@pytest.mark.parametrize("which", checkpoints.NETWORKS)
def test_a_checkpoint_alone_gives_its_network(which: str, tmp_path: Path) -> None:
    expected = checkpoints.save(tmp_path / "a.ckpt", which)
    random = torch.get_rng_state()
    network, description = load_network(tmp_path / "a.ckpt")
    images = checkpoints.seeded_images(checkpoints.NETWORKS[which][2])
    assert torch.equal(network(images), expected(images))
    assert not network.training
    assert description["class_names"] == checkpoints.CLASSES
    assert random is not None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": 3, "args": {}, "image_size": 40}, "is damaged, its model"),
        ({"name": "test_vit", "args": [3], "image_size": 40}, "is damaged, its model"),
        ({"name": "test_vit", "args": {}, "image_size": None}, "is damaged, its image_size None cannot be"),
        ({"name": "vit_nonsense", "args": {}, "image_size": 40}, "^'vit_nonsense' is not a model"),
        ({"name": "vit_tiny_patch16_224", "args": {}, "image_size": 224}, "its tensors are not those of vit_tiny_patch16_224"),
    ],
)
def test_what_a_checkpoint_says_may_be_wrong(model: dict[str, object], message: str, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.ckpt", model=model)
    with pytest.raises(InputError, match=message):
        load_network(tmp_path / "a.ckpt")


def test_names_of_tensors() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    given = {"network.head.weight": one, "network._orig_mod.head.bias": two, "metrics.val.total": one}
    assert network_tensors(given) == {"head.weight": one, "head.bias": two}
