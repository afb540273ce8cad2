from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from dropkey_cli.data.preprocessing import Preprocessing
from dropkey_cli.errors import InputError
from dropkey_cli.export.images import images_to_compare

PREPROCESSING = Preprocessing(32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bicubic", 0.8)


def test_images_it_was_trained_on_as_timm_would_prepare_them(photos: Path) -> None:
    images, text = images_to_compare(PREPROCESSING, given=None, root=str(photos))
    transform = create_transform(32, interpolation="bicubic", crop_pct=0.8, mean=PREPROCESSING.mean, std=PREPROCESSING.std)
    files = [photos / "train/Löwe" / f"{number}.png" for number in range(8)]  # 00.png is none
    expected = torch.stack([transform(Image.open(file)) for file in files])
    torch.testing.assert_close(images, expected)
    assert text == f"8 images of {photos}"


def test_one_image_is_repeated(photos: Path) -> None:
    images, text = images_to_compare(PREPROCESSING, given=str(photos / "train/Löwe/3.png"), root=None)
    assert images.shape == (8, 3, 32, 32)
    assert torch.equal(images[0], images[7])
    assert text.startswith("1 image of ")


@pytest.mark.parametrize("root", [None, "nowhere", 3, "empty"])
def test_random_ones_where_the_others_are_gone(root: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    images, text = images_to_compare(PREPROCESSING, given=None, root=root)
    assert text.startswith("8 random images")
    assert len({image.sum().item() for image in images}) == 8
    assert torch.equal(images, images_to_compare(PREPROCESSING, given=None, root=root)[0])
    low = torch.tensor([-2.0, -2.0, -2.0])  # black, normalised
    assert (images.amin((0, 2, 3)) - low).abs().max() < 0.05


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
@pytest.mark.parametrize("given", [True, False])
def test_images_of_as_many_channels_as_the_network_sees(channels: int, mode: str, given: bool, photos: Path) -> None:
    half = (0.5,) * channels
    preprocessing = Preprocessing(32, half, half, "bicubic", 1.0, channels=channels)
    file = photos / "train/Löwe/3.png"
    images, text = images_to_compare(preprocessing, given=str(file) if given else None, root=str(file.parent))
    assert images.shape == (8, channels, 32, 32)
    assert "random" not in text
    transform = create_transform(32, interpolation="bicubic", crop_pct=1.0, mean=half, std=half)
    torch.testing.assert_close(images[0 if given else 3], transform(Image.open(file).convert(mode)))


def test_given_ones_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--images 'nowhere' does not exist: give an image or a folder of images$"):
        images_to_compare(PREPROCESSING, given="nowhere", root=str(tmp_path))


def test_given_ones_that_cannot_be_read(photos: Path) -> None:
    with pytest.raises(InputError, match=r"^--images '\S+00.png' has no image that can be read"):
        images_to_compare(PREPROCESSING, given=str(photos / "train/Löwe/00.png"), root=str(photos))
