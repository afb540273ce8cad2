"""What turns PIL images into what a model expects: size, crop and interpolation image by image, the numbers batch by batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from PIL import Image
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.transforms import str_to_interp_mode
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, RandomCrop, Resize
from torchvision.transforms.functional import center_crop, get_image_size, resize

from dropkey_cli.data.augmentation import Augmentation
from dropkey_cli.errors import InputError, did_you_mean

Picture = Image.Image | Tensor
"""An image before its transform: from a file, or an 8-bit array ``(C, height, width)``."""
Transform = Callable[[Any], Tensor]
"""From a `Picture` to an 8-bit tensor ``(C, image_size, image_size)``."""

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
_LONGEST = 16
"""How many times as long as wide an image may be before it is cut: resizing 1 × 60,000 pixels would take gigabytes."""
_SMALLEST_BLURRED = 12


@dataclass(frozen=True)
class Preprocessing:
    """How images reach the model; the same numbers in training, validation and prediction.

    Args:
        image_size: Height and width of the model's input, in pixels.
        mean: Mean of each channel that is subtracted, for values in [0, 1].
        std: Standard deviation of each channel to divide by, for values in [0, 1].
        interpolation: How images are resized: bicubic, bilinear, nearest, lanczos, box or hamming.
        crop_pct: Share of the resized image's shorter side that the centre crop keeps (evaluation only).
        crop_mode: What evaluation does with an image that is not square: center crops the middle, squash distorts it,
            border adds a border.
        channels: 3 for red, green and blue, 1 for grey, 4 with transparency, or any other number.

    Raises:
        InputError: If one of the values cannot work.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"
    channels: int = 3

    def __post_init__(self) -> None:
        """Check the values where they enter."""
        if not 1 <= self.image_size <= 10_000:
            raise InputError(f"image_size is {self.image_size!r}; expected 1 to 10000; give e.g. --data.image_size 224")
        if not 1 <= self.channels <= 10_000:
            raise InputError(f"channels is {self.channels!r}; expected 1 to 10000; give --data.channels 3")
        numbers = {1: "one number", 3: "three numbers, red, green, blue"}.get(self.channels, f"{self.channels} numbers")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise InputError(f"{name} is {values!r}; expected {numbers}; give --data.{name}")
        if min(self.std) <= 0:
            raise InputError(f"std is {self.std!r}; expected {numbers.split(',')[0]} above 0; give --data.std")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation is {self.interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}; "
                f"give --data.interpolation bicubic{did_you_mean(self.interpolation, INTERPOLATIONS)}"
            )
        if self.channels not in (1, 3) and self.interpolation not in INTERPOLATIONS[:3]:
            raise InputError(
                f"interpolation is {self.interpolation!r}, for {self.channels} channels expected one of "
                f"{', '.join(INTERPOLATIONS[:3])}; give --data.interpolation bicubic"
            )
        if self.channels not in (1, 3) and self.crop_mode == "border":
            raise InputError(
                f"crop_mode is 'border', for {self.channels} channels expected center or squash; give --data.crop_mode center"
            )
        if self.crop_mode not in CROP_MODES:
            raise InputError(
                f"crop_mode is {self.crop_mode!r}; expected one of {', '.join(CROP_MODES)}; give --data.crop_mode center"
            )
        if not 0.01 <= self.crop_pct <= 2:  # a few timm models resize to less than the crop: 1.14 exists, 87.5 is a mistake
            raise InputError(f"crop_pct is {self.crop_pct!r}; expected a share such as 0.9; give --data.crop_pct")

    def normalize(self, images: Tensor) -> Tensor:
        """Images as the model sees them, computed where they lie.

        Args:
            images: 8-bit, (B, C, height, width).

        Returns:
            float32, of the same shape.
        """
        normalized = images.float().div_(255)
        for channel, mean, std in zip(normalized.unbind(1), self.mean, self.std, strict=True):
            channel.sub_(mean).div_(std)  # by numbers: a tensor of the means would make the host wait for the device
        return normalized


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """The transform of validation, test and prediction: resize, centre crop.

    Args:
        preprocessing: The model's preprocessing.
    """
    transform = create_transform(
        preprocessing.image_size,
        is_training=False,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,  # the colour of a border
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        normalize=False,
    )
    if preprocessing.crop_mode == "squash":
        return cast(Transform, transform)
    border = partial(_squeezed, ratio=preprocessing.image_size)
    cut = border if preprocessing.crop_mode == "border" else _middle
    return cast(Transform, Compose([cut, *transform.transforms]))


def train_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> Transform:
    """The transform of training: crop and augment at random.

    Args:
        preprocessing: The model's preprocessing; ``crop_pct`` plays no part here.
        augmentation: What is done at random.

    Raises:
        InputError: If the images cannot be augmented so.
    """
    _check_fit(preprocessing, augmentation)
    mode = augmentation.train_crop_mode
    first, *others = create_transform(
        preprocessing.image_size,
        is_training=True,
        interpolation=preprocessing.interpolation,
        train_crop_mode="rrc" if mode == "pad" else mode,
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        hflip=augmentation.hflip,
        vflip=augmentation.vflip,
        color_jitter=augmentation.jitter,  # type: ignore[arg-type]  # timm means None by "off", its annotation forgets it
        color_jitter_prob=augmentation.color_jitter_prob if augmentation.color_jitter_prob < 1 else None,
        grayscale_prob=augmentation.grayscale_prob,
        gaussian_blur_prob=augmentation.gaussian_blur_prob,
        auto_augment=augmentation.auto_augment,
        mean=preprocessing.mean,  # what auto_augment fills the corners of a turned image with
        re_prob=0.0,
        normalize=False,
    ).transforms
    if mode == "pad":
        size = preprocessing.image_size
        interpolation = str_to_interp_mode(preprocessing.interpolation)  # type: ignore[no-untyped-call]  # timm's
        crop = RandomCrop(size, padding=augmentation.crop_padding)
        steps = [_middle, Resize(size, interpolation), CenterCrop(size), crop]
    else:
        steps = [first] if mode == "rrc" else [_middle, first]
    for operation in _augment_operations(others):
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterized
    return cast(Transform, Compose([*steps, *others]))


def _augment_operations(part: Any) -> Iterator[AugmentOp]:  # noqa: ANN401 - transforms, timm's policies, lists of them
    """Timm's single operations within its RandAugment, AugMix and AutoAugment."""
    if isinstance(part, AugmentOp):
        yield part
    else:
        for inner in part if isinstance(part, list) else getattr(part, "ops", getattr(part, "policy", [])):
            yield from _augment_operations(inner)


def _posterized(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """Timm's posterize, which keeps no bits at its largest magnitude: black, as before Pillow 13, which refuses that."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    kept: Image.Image = posterize(image, bits_to_keep)  # type: ignore[no-untyped-call]  # timm's
    return kept


def _check_fit(preprocessing: Preprocessing, augmentation: Augmentation) -> None:
    """Refuse what timm and torchvision cannot do with images of so many channels or so few pixels."""
    coloured: dict[str, object] = {"auto_augment": augmentation.auto_augment, "grayscale_prob": augmentation.grayscale_prob}
    if preprocessing.channels != 1:
        coloured["color_jitter"] = augmentation.jitter
    for name, value in coloured.items():
        if value and preprocessing.channels != 3:
            raise InputError(
                f"{name} is {getattr(augmentation, name)!r}, but the images have {preprocessing.channels} channel(s): "
                f"it is for red, green and blue; leave --data.{name} out"
            )
    if augmentation.auto_augment and preprocessing.interpolation not in INTERPOLATIONS[:3]:
        raise InputError(
            f"interpolation is {preprocessing.interpolation!r}, beside auto_augment expected one of "
            f"{', '.join(INTERPOLATIONS[:3])}; give --data.interpolation bicubic"
        )
    if augmentation.gaussian_blur_prob and preprocessing.image_size < _SMALLEST_BLURRED:
        raise InputError(
            f"gaussian_blur_prob is {augmentation.gaussian_blur_prob!r}, but the images are {preprocessing.image_size} pixels "
            f"wide; timm blurs over 23 pixels and needs {_SMALLEST_BLURRED}; leave --data.gaussian_blur_prob out"
        )


def _middle(image: Picture) -> Picture:
    """The middle of an image that is far longer than wide; it is all that a centre crop sees."""
    width, height = get_image_size(image)
    longest = _LONGEST * min(width, height)
    return image if max(width, height) <= longest else center_crop(image, [min(height, longest), min(width, longest)])


def _squeezed(image: Picture, *, ratio: int) -> Picture:
    """An image at most ``ratio`` times as long as wide: beyond, timm would resize a side to 0 pixels."""
    width, height = get_image_size(image)
    longest = ratio * min(width, height)
    return image if max(width, height) <= longest else resize(image, [min(height, longest), min(width, longest)])
