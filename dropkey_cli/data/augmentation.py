"""How training images are changed at random: options checked where they enter. Light, because --help reads it too."""

import re
from dataclasses import dataclass
from typing import Literal

from dropkey_cli.errors import InputError

# The parts of an auto_augment text after its first word; what timm does not know it passes over
_WHOLE, _NUMBER = r"\d+", r"\d+(\.\d+)?"
_AUTO_AUGMENT = {"mstd": _NUMBER}
_PARTS = {
    "rand": {
        "m": _WHOLE,
        "n": "[1-9]",
        "p": r"0(\.\d+)?|1(\.0+)?",
        "mstd": _NUMBER,
        "mmax": _WHOLE,
        "inc": "[01]",
        "t": "weights|3a|3aw",
    },
    "augmix": {"m": _WHOLE, "w": "[1-9]", "d": "[1-9]", "b": "[01]", "a": _NUMBER, "mstd": _NUMBER},
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), _AUTO_AUGMENT),
}
_EXAMPLES = "rand-m9-mstd0.5-inc1 (RandAugment), augmix-m3, original (AutoAugment) or 3a (3-Augment)"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are changed at random, each time anew.

    Args:
        train_crop_mode: What a training image shows: rrc, a random part stretched to a square; rkrc and rkrr, the image
            resized with its shape about kept and cropped in the middle or anywhere; pad, all of it with a black border
            of crop_padding pixels, cropped anywhere (CIFAR).
        crop_scale: Smallest and largest share of the area that a training crop covers.
        crop_ratio: Smallest and largest width over height of a crop; by default 3/4 to 4/3, for rkrc and rkrr 0.9 to 1.11.
        crop_padding: Width of the border of pad, in pixels.
        hflip: Probability of mirroring a training image left and right.
        vflip: Probability of mirroring a training image top and bottom.
        color_jitter: Largest change of brightness, contrast and saturation, e.g. 0.3; or a list of three or, with hue, four.
        color_jitter_prob: Probability of color_jitter.
        grayscale_prob: Probability of making a training image grey.
        gaussian_blur_prob: Probability of blurring a training image.
        auto_augment: timm's text for RandAugment, AugMix, AutoAugment or 3-Augment: rand-m9-mstd0.5-inc1, augmix-m3,
            original, 3a …

    Raises:
        InputError: If one of the values cannot work.
    """

    train_crop_mode: Literal["rrc", "rkrc", "rkrr", "pad"] = "rrc"
    crop_scale: tuple[float, float] = (0.35, 1.0)
    crop_ratio: tuple[float, float] | None = None
    crop_padding: int = 4
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float | tuple[float, ...] = 0.0
    color_jitter_prob: float = 1.0
    grayscale_prob: float = 0.0
    gaussian_blur_prob: float = 0.0
    auto_augment: str | None = None

    def __post_init__(self) -> None:
        """Check the values where they enter."""
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(
                f"crop_scale is {self.crop_scale!r}; expected two shares of the area, smaller first, in (0, 1]; "
                "give e.g. --data.crop_scale [0.35,1.0]"
            )
        if self.crop_ratio is not None and not 0.25 <= self.crop_ratio[0] <= self.crop_ratio[1] <= 4:
            raise InputError(
                f"crop_ratio is {self.crop_ratio!r}; expected two ratios of width to height, smaller first, in [0.25, 4]; "
                "give e.g. --data.crop_ratio [0.75,1.33]"
            )
        if not 0 <= self.crop_padding <= 10_000:
            raise InputError(f"crop_padding is {self.crop_padding!r}; expected 0 to 10000; give e.g. --data.crop_padding 4")
        for name in ("hflip", "vflip", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"{name} is {value!r}; expected a probability in [0, 1]; give e.g. --data.{name} 0.5")
        self._check_color_jitter()
        if self.auto_augment is not None:
            self._check_auto_augment(self.auto_augment)

    @property
    def jitter(self) -> tuple[float, ...] | None:
        """The largest change of brightness, contrast, saturation and, if given, hue; None for no change."""
        given = self.color_jitter if isinstance(self.color_jitter, tuple | list) else (self.color_jitter,) * 3
        return tuple(given) if any(given) else None

    def _check_color_jitter(self) -> None:
        given = self.jitter or (0.0,) * 3
        if len(given) not in (3, 4) or min(given) < 0 or (len(given) == 4 and given[3] > 0.5):
            raise InputError(
                f"color_jitter is {self.color_jitter!r}; expected a number of 0 or more, or three or four of them, for "
                "brightness, contrast, saturation and hue, which is at most 0.5; give e.g. --data.color_jitter 0.3"
            )

    def _check_auto_augment(self, text: str) -> None:
        kind, *parts = text.split("-")
        if kind not in _PARTS:
            raise InputError(f"auto_augment is {text!r}; expected e.g. {_EXAMPLES}; give --data.auto_augment null for none")
        known = _PARTS[kind]
        names = [[name for name, value in known.items() if re.fullmatch(f"{name}({value})", part)] for part in parts]
        wrong = [part for part, found in zip(parts, names, strict=True) if not found]
        if wrong or len(set(map(tuple, names))) < len(names):
            problem = f"{wrong[0]!r} in it means nothing" if wrong else "it gives a value twice"
            raise InputError(
                f"auto_augment is {text!r}, but {problem}; expected {kind} and any of {', '.join(known)}, each with its value, "
                f"as in {_EXAMPLES}; correct --data.auto_augment"
            )
        if self.jitter and "3a" not in text:
            raise InputError(
                f"color_jitter is {self.color_jitter!r} beside auto_augment {text!r}, which changes the colours by itself; "
                "expected one of them (timm then leaves the first out); give --data.color_jitter 0"
            )
