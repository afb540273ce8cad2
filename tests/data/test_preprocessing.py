import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from dropkey_cli.data.augmentation import Augmentation
from dropkey_cli.data.preprocessing import CROP_MODES, Preprocessing, eval_transform, train_transform
from dropkey_cli.errors import InputError

MEAN = (0.4, 0.5, 0.6)
STD = (0.2, 0.25, 0.5)


def preprocessing(**changes: object) -> Preprocessing:
    values = {"image_size": 16, "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.8} | changes
    return Preprocessing(**values)  # type: ignore[arg-type]  # values of the wrong kind are tested as well


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def model_input(image: Image.Image, plain: Preprocessing) -> torch.Tensor:
    """What a model sees of one image in evaluation."""
    return plain.normalize(eval_transform(plain)(image)[None])[0]


def test_eval_transform_equals_resize_crop_and_normalise_by_hand() -> None:
    image = noise(60, 40)
    resized = image.resize((30, 20), Image.Resampling.BICUBIC)  # shorter side 16 / 0.8
    cropped = np.asarray(resized.crop((7, 2, 23, 18)), dtype=np.float64) / 255
    expected = ((cropped - MEAN) / STD).transpose(2, 0, 1)
    assert eval_transform(preprocessing())(image).dtype == torch.uint8
    transformed = model_input(image, preprocessing())
    assert transformed.shape == (3, 16, 16)
    assert transformed.dtype == torch.float32
    np.testing.assert_allclose(transformed.numpy(), expected, atol=1e-5)


def test_eval_transform_leaves_an_image_of_the_right_size_as_it_is() -> None:
    image = noise(16, 16)
    transformed = eval_transform(preprocessing(crop_pct=1.0))(image)
    np.testing.assert_array_equal(transformed.numpy().transpose(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize(
    ("mean", "std"),
    [(MEAN, STD), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3)],
)
@pytest.mark.parametrize("size", [16, 13])  # all 256 values of every channel, and rows that are not a multiple of anything
def test_normalized_batch_is_bitwise_what_timm_makes_of_each_image(
    mean: tuple[float, ...], std: tuple[float, ...], size: int
) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = [noise(40, 30), Image.fromarray(np.stack([values, values.T, values[::-1]], axis=-1))]
    plain = preprocessing(mean=mean, std=std, image_size=size, crop_pct=1.0)
    theirs = create_transform(size, is_training=False, interpolation="bicubic", mean=mean, std=std, crop_pct=1.0)
    batch = torch.stack([eval_transform(plain)(image) for image in images])
    before = batch.clone()
    assert torch.equal(plain.normalize(batch), torch.stack([theirs(image) for image in images]))
    assert torch.equal(batch, before)


def test_train_transform_flips_and_crops_only_as_told() -> None:
    image = noise(16, 16)
    whole = (1.0, 1.0)
    plain = eval_transform(preprocessing(crop_pct=1.0))(image)
    assert torch.equal(train_transform(preprocessing(), Augmentation(crop_scale=whole, hflip=1.0))(image), plain.flip(2))
    assert torch.equal(train_transform(preprocessing(), Augmentation(crop_scale=whole, hflip=0.0))(image), plain)
    assert not torch.equal(train_transform(preprocessing(), Augmentation(crop_scale=(0.3, 0.4), hflip=0.0))(image), plain)


def test_train_transform_uses_the_interpolation_of_the_model() -> None:
    two_colours = Image.fromarray(np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((4, 4), np.uint8))).convert("RGB")
    plain = preprocessing(interpolation="nearest")
    assert set(train_transform(plain, Augmentation())(two_colours).flatten().tolist()) <= {0, 255}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size is 0; expected 1 to 10000"),
        ({"image_size": 10**8}, "image_size is 100000000; expected 1 to 10000"),
        ({"crop_pct": 1e-9}, "crop_pct is 1e-09; expected a share"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\); expected three numbers, red, green, blue"),
        ({"std": (0.5, 0.0, 0.5)}, r"std is \(0.5, 0.0, 0.5\); expected three numbers above 0"),
        ({"interpolation": "bicubik"}, "interpolation is 'bicubik'; .*did you mean 'bicubic'"),
        ({"crop_pct": 87.5}, "crop_pct is 87.5; expected a share"),
    ],
)
def test_preprocessing_refuses_values_that_cannot_work(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        preprocessing(**changes)


def test_squash_keeps_the_whole_of_an_oblong_image() -> None:
    image = Image.new("RGB", (32, 16), "black")
    image.paste((255, 255, 255), (0, 0, 4, 16))  # the left eighth, which a centre crop loses
    assert eval_transform(preprocessing(crop_pct=1.0, crop_mode="center"))(image).max() == 0
    assert eval_transform(preprocessing(crop_pct=1.0, crop_mode="squash"))(image).max() == 255
    with pytest.raises(InputError, match="'middle'; expected one of center, squash, border"):
        preprocessing(crop_mode="middle")


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "nearest"])
def test_every_crop_mode_is_timms_with_the_models_own_mean(crop_mode: str, interpolation: str) -> None:
    plain = preprocessing(crop_mode=crop_mode, interpolation=interpolation)
    theirs = create_transform(
        16, is_training=False, interpolation=interpolation, mean=MEAN, std=STD, crop_pct=0.8, crop_mode=crop_mode
    )
    for image in (noise(50, 30), noise(30, 50), noise(9, 8)):
        assert torch.equal(model_input(image, plain), theirs(image))
