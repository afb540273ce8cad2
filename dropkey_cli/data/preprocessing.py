"""What turns PIL images into what a model expects: size, crop and interpolation image by image, the numbers batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from dropkey_cli.errors import InputError, did_you_mean

Transform = Callable[[Image.Image], Tensor]

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class Preprocessing:
    """How images reach the model; the same numbers in training, validation and prediction.

    Args:
        image_size: Height and width of the model's input, in pixels.
        mean: Mean of red, green and blue that is subtracted, for values in [0, 1].
        std: Standard deviation of red, green and blue to divide by, for values in [0, 1].
        interpolation: How images are resized: bicubic, bilinear, nearest, lanczos, box or hamming.
        crop_pct: Share of the resized image's shorter side that the centre crop keeps (evaluation only).
        crop_mode: What evaluation does with an image that is not square: center crops the middle, squash distorts it,
            border adds a border.

    Raises:
        InputError: If one of the values cannot work.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        """Check the values where they enter."""
        if not 1 <= self.image_size <= 10_000:
            raise InputError(f"image_size is {self.image_size!r}; expected 1 to 10000; give e.g. --data.image_size 224")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise InputError(f"{name} is {values!r}; expected three numbers, red, green, blue; give --data.{name}")
        if min(self.std) <= 0:
            raise InputError(f"std is {self.std!r}; expected three numbers above 0; give --data.std")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation is {self.interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}; "
                f"give --data.interpolation bicubic{did_you_mean(self.interpolation, INTERPOLATIONS)}"
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
            images: 8-bit, (B, 3, height, width).

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

    Returns:
        A callable from an RGB PIL image to an 8-bit tensor ``(3, image_size, image_size)``.
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
    return cast(Transform, transform)


def train_transform(
    preprocessing: Preprocessing, *, crop_scale: tuple[float, float] = (0.35, 1.0), hflip: float = 0.5
) -> Transform:
    """The transform of training: random resized crop, horizontal flip.

    Args:
        preprocessing: The model's preprocessing; ``crop_pct`` plays no part here.
        crop_scale: Smallest and largest share of the image's area that a crop covers, in (0, 1].
        hflip: Probability of mirroring left and right, in [0, 1].

    Returns:
        A callable from an RGB PIL image to an 8-bit tensor ``(3, image_size, image_size)``.

    Raises:
        InputError: If ``crop_scale`` or ``hflip`` is out of range.
    """
    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise InputError(
            f"crop_scale is {crop_scale!r}; expected two shares of the area, smaller first, in (0, 1]; "
            "give e.g. --data.crop_scale [0.35,1.0]"
        )
    if not 0 <= hflip <= 1:
        raise InputError(f"hflip is {hflip!r}; expected a probability in [0, 1]; give e.g. --data.hflip 0.5")
    transform = create_transform(
        preprocessing.image_size,
        is_training=True,
        interpolation=preprocessing.interpolation,
        scale=crop_scale,
        hflip=hflip,
        color_jitter=None,  # type: ignore[arg-type]  # timm means None by "off", its annotation forgets it
        auto_augment=None,
        re_prob=0.0,
        normalize=False,
    )
    return cast(Transform, transform)
