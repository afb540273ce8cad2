import numpy as np
import pytest
import torch
from PIL import Image

from dropkey_cli.data.preprocessing import Preprocessing, eval_transform, train_transform
from dropkey_cli.errors import InputError

MEAN = (0.4, 0.5, 0.6)
STD = (0.2, 0.25, 0.5)


def preprocessing(**changes: object) -> Preprocessing:
    values = {"image_size": 16, "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.8} | changes
    return Preprocessing(**values)  # type: ignore[arg-type]  # values of the wrong kind are tested as well


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_eval_transform_equals_resize_crop_and_normalise_by_hand() -> None:
    image = noise(60, 40)
    resized = image.resize((30, 20), Image.Resampling.BICUBIC)  # shorter side 16 / 0.8
    cropped = np.asarray(resized.crop((7, 2, 23, 18)), dtype=np.float64) / 255
    expected = ((cropped - MEAN) / STD).transpose(2, 0, 1)
    transformed = eval_transform(preprocessing())(image)
    assert transformed.shape == (3, 16, 16)
    assert transformed.dtype == torch.float32
    np.testing.assert_allclose(transformed.numpy(), expected, atol=1e-5)


def test_eval_transform_leaves_an_image_of_the_right_size_as_it_is() -> None:
    image = noise(16, 16)
    plain = preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0)
    transformed = eval_transform(plain)(image)
    np.testing.assert_allclose(transformed.numpy().transpose(1, 2, 0) * 255, np.asarray(image), atol=1e-4)


def test_train_transform_flips_and_crops_only_as_told() -> None:
    image = noise(16, 16)
    whole = (1.0, 1.0)
    plain = eval_transform(preprocessing(crop_pct=1.0))(image)
    assert torch.equal(train_transform(preprocessing(), crop_scale=whole, hflip=1.0)(image), plain.flip(2))
    assert torch.equal(train_transform(preprocessing(), crop_scale=whole, hflip=0.0)(image), plain)
    assert not torch.equal(train_transform(preprocessing(), crop_scale=(0.3, 0.4), hflip=0.0)(image), plain)


def test_train_transform_uses_the_interpolation_of_the_model() -> None:
    two_colours = Image.fromarray(np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((4, 4), np.uint8))).convert("RGB")
    plain = preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="nearest")
    assert set(train_transform(plain)(two_colours).flatten().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size is 0; expected 1 or more"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\); expected three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, r"std is \(0.5, 0.0, 0.5\); expected three numbers above 0"),
        ({"interpolation": "bicubik"}, "interpolation is 'bicubik'; .*did you mean 'bicubic'"),
        ({"crop_pct": 87.5}, "crop_pct is 87.5; expected a share"),
    ],
)
def test_preprocessing_refuses_values_that_cannot_work(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocessing(**changes)


def test_train_transform_refuses_values_that_cannot_work() -> None:
    with pytest.raises(InputError, match=r"crop_scale is \(0.5, 0.2\); expected two shares"):
        train_transform(preprocessing(), crop_scale=(0.5, 0.2))
    with pytest.raises(InputError, match=r"hflip is 1.5; expected a probability"):
        train_transform(preprocessing(), hflip=1.5)


def test_squash_keeps_the_whole_of_an_oblong_image() -> None:
    image = Image.new("RGB", (32, 16), "black")
    image.paste((255, 255, 255), (0, 0, 4, 16))  # the left eighth, which a centre crop loses
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0}
    assert eval_transform(preprocessing(**plain, crop_mode="center"))(image).max() == 0
    assert eval_transform(preprocessing(**plain, crop_mode="squash"))(image).max() == 1
    with pytest.raises(InputError, match="'middle'; expected one of center, squash, border"):
        preprocessing(crop_mode="middle")
