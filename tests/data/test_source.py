import inspect
from pathlib import Path

import pytest
import torch
from PIL import Image

from dropkey_cli.data.augmentation import Augmentation
from dropkey_cli.data.dataset import Sample
from dropkey_cli.data.source import ImageSource
from dropkey_cli.errors import InputError

MODEL = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "nearest", "crop_pct": 1.0}


def source(**options: object) -> ImageSource:
    return ImageSource(**{"root": None, "num_workers": 0, **MODEL, **options})  # type: ignore[arg-type]  # any options


def test_every_augmentation_can_be_given_and_arrives() -> None:
    given = {
        "train_crop_mode": "pad",
        "crop_scale": (0.1, 0.2),
        "crop_ratio": (0.5, 2.0),
        "crop_padding": 3,
        "hflip": 0.1,
        "vflip": 0.2,
        "color_jitter": 0.3,
        "color_jitter_prob": 0.4,
        "grayscale_prob": 0.6,
        "gaussian_blur_prob": 0.7,
        "auto_augment": "3a",
    }
    assert given.keys() == inspect.signature(Augmentation).parameters.keys()
    assert source(**given).augmentation == Augmentation(**given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'hflipp'"):
        source(hflipp=1)


def test_the_splits_are_read_as_the_options_say(tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "a.png")
    samples = {split: [Sample(str(tmp_path / "a.png"), 0)] for split in ("train", "val")}
    splits = source(crop_scale=(1.0, 1.0), hflip=0.0, vflip=1.0, on_error="skip").datasets(samples)
    train, val = (splits[split][0]["image"] for split in ("train", "val"))
    assert torch.equal(train, val.flip(1))
    assert not torch.equal(train, val)
    assert {dataset.on_error for dataset in splits.values()} == {"skip"}


def test_what_images_cannot_be_prepared_with_is_refused_before_they_are_looked_for() -> None:
    for options, message in (
        ({"gaussian_blur_prob": 0.5}, "gaussian_blur_prob is 0.5, but the images are 8 pixels wide; timm .* needs 12"),
        ({"std": None}, "std not given and not known from the model; give --data.std"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\); expected three numbers"),
    ):
        with pytest.raises(InputError, match=message):
            source(**options).setup("fit")
