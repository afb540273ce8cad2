import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from dropkey_cli.data.named.torchvision_sets import SETS, labels_of, open_torchvision
from dropkey_cli.data.reading import load_image
from dropkey_cli.errors import InputError
from tests.data.formats import write_cifar10, write_mnist


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Generated pictures in the files of CIFAR-10. Torchvision compares checksums: those of these files take their place."""
    checksums = write_cifar10(tmp_path / "data", {"train": 30, "test": 20})
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, checksums[name])
    meta = dict(torchvision.datasets.CIFAR10.meta)
    meta["md5"] = checksums["meta"][0][1]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", meta)
    return tmp_path / "data"


def test_every_name_is_a_class_of_torchvision_with_these_arguments() -> None:
    import inspect

    for class_name, splits in SETS.values():
        accepted = inspect.signature(getattr(torchvision.datasets, class_name)).parameters
        takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        for arguments in splits.values():
            assert set(arguments) <= set(accepted) or takes_more, class_name
        assert "download" in accepted or takes_more, class_name


def test_timms_names_are_known() -> None:
    from timm.data.dataset_factory import _TORCH_BASIC_DS

    assert {*_TORCH_BASIC_DS, "inaturalist", "places365", "qmnist", "imagenet"} <= set(SETS)


def test_cifar10_has_what_torchvision_gives(cifar10: Path) -> None:
    found = open_torchvision("torch/cifar10", "cifar10", data_dir=str(cifar10), download=False)
    assert found.class_names[:2] == ["airplane", "automobile"]
    assert list(found.splits) == ["train", "test"]
    assert found.splits["train"].names[12] == "cifar10/train/000012"
    for split, given in found.splits.items():
        theirs = torchvision.datasets.CIFAR10(str(cifar10), train=split == "train")
        assert list(given.labels) == [label for _, label in theirs]
        for place in (0, len(theirs) - 1):
            assert load_image(given.read(place)).tobytes() == theirs[place][0].tobytes()
        assert pickle.loads(pickle.dumps(given.read))(3).size == (32, 32)


def test_other_files_than_torchvisions_are_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path, {"train": 30, "test": 20})  # with checksums of their own
    with pytest.raises(InputError, match=r"'torch/cifar10' is not complete in .*\(Dataset not found or corrupted\); expected "):
        open_torchvision("torch/cifar10", "cifar10", data_dir=str(tmp_path), download=False)


@pytest.mark.parametrize("name", ["mnist", "FashionMNIST", "fashion_mnist", "KMNIST", "fashion-mnist"])
def test_grey_images_become_rgb(name: str, tmp_path: Path) -> None:
    folder = {"m": "MNIST", "f": "FashionMNIST", "k": "KMNIST"}[name[0].lower()]
    write_mnist(tmp_path, folder)
    found = open_torchvision(f"torch/{name}", name, data_dir=str(tmp_path), download=False)
    assert {split: len(given.names) for split, given in found.splits.items()} == {"train": 40, "test": 20}
    assert found.splits["test"].labels == [place % 10 for place in range(20)]
    image = load_image(found.splits["test"].read(0))
    assert (image.mode, image.size) == ("RGB", (28, 28))


def test_a_data_set_of_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("AnnualCrop", "Forest", "River")):
        folder = tmp_path / "eurosat/2750" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / "1.jpg")
    found = open_torchvision("torch/eurosat", "eurosat", data_dir=str(tmp_path), download=False)
    assert found.class_names == ["AnnualCrop", "Forest", "River"]
    assert list(found.splits) == ["train"]
    assert found.splits["train"].labels == [0, 1, 2]
    Path(tmp_path, "eurosat/2750/Forest/1.jpg").write_bytes(b"\xff\xd8broken")
    with pytest.raises(OSError, match="UnidentifiedImageError: cannot identify image file"):
        found.splits["train"].read(1)


class Labelled:
    """A data set that keeps its labels in some attribute, or in none."""

    def __init__(self, **kept: Any) -> None:  # noqa: ANN401 - any attribute
        vars(self).update(kept)
        self.read: list[int] = []

    def __len__(self) -> int:
        return 20

    def __getitem__(self, place: int) -> tuple[None, int]:
        self.read.append(place)
        return None, place % 4


RIGHT = [place % 4 for place in range(20)]


@pytest.mark.parametrize(
    "kept",
    [{"targets": RIGHT}, {"_labels": RIGHT}, {"y": np.array(RIGHT)}, {"samples": [("x", label) for label in RIGHT]}],
)
def test_labels_are_found_without_decoding_every_image(kept: dict[str, Any]) -> None:
    dataset = Labelled(**kept)
    assert labels_of(dataset) == RIGHT
    assert sorted(dataset.read) == [0, 10, 19]


@pytest.mark.parametrize("kept", [{}, {"targets": [0] * 20}, {"targets": RIGHT[:5]}])
def test_labels_that_are_not_the_images_are_not_believed(kept: dict[str, Any]) -> None:
    assert labels_of(Labelled(**kept)) == RIGHT


def test_what_is_not_there_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    def refused(name: str, message: str, data_dir: Path = tmp_path / "data") -> None:
        with pytest.raises(InputError, match=message):
            open_torchvision(f"torch/{name}", name, data_dir=str(data_dir), download=False)

    refused("cifra10", r"'torch/cifra10' is not in torchvision; expected one of caltech101, .*did you mean 'cifar10'")
    refused("caltech101", r"the folder '.*data' does not exist; expected .*give --data.data_dir, or --data.download true$")
    refused("imagenet", r"the folder '.*data' does not exist; expected torchvision's files; give --data.data_dir$")
    assert not list(tmp_path.iterdir())
    (tmp_path / "data").mkdir()
    refused("svhn", r"is not complete in '.*data' \(Dataset not found or corrupted\); expected torchvision's SVHN there; give")
    refused("qmnist", r"\(Dataset not found\).*; give --data.data_dir, or --data.download true$")
    refused("imagenet", r"ILSVRC2012_devkit.* expected torchvision's ImageNet there; give --data.data_dir$")
    refused("image_folder", "stands for class folders; expected the folder itself; give --data.root .*data")
