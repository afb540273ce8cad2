"""Scikit-learn's handwritten digits: ten classes that need no download, for a first run and for tests."""

from typing import cast

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import Compose, InterpolationMode, RandomAffine

from dropkey_cli.data.dataset import ImageDataset, Sample
from dropkey_cli.data.module import ImageData
from dropkey_cli.data.preprocessing import Preprocessing, Transform, eval_transform
from dropkey_cli.data.split import stratified_split
from dropkey_cli.errors import InputError

# Over all pixels of the 1,079 training images, as 8-bit values divided by 255; the three channels are equal.
MEAN = 0.3057
STD = 0.3761
HELD_OUT = {"val": 0.2, "test": 0.2}


class Digits(ImageData):
    """The 1,797 scans of handwritten digits, 8 × 8 pixels, that come with scikit-learn (Alpaydin and Kaynak 1998, UCI).

    60 % train, 20 % val and 20 % test, class by class and always the same; seeds do not change it. Every writer
    may appear in all three.

    Args:
        root: The images to predict: a file, a folder, a pattern, a table, a list, or - for standard input; the digits
            themselves need none.
        image_size: Height and width that the model sees, in pixels.
        degrees: A training image is turned by up to this angle, either way.
        translate: A training image is moved by up to this share of its side, in each direction.
        max_train_images: Train on only so many of the training images: of each class its share, at least one, and always the
            same ones. Those of a smaller number are among those of a larger one; the images of validation and test stay the
            same. null takes all.
        batch_size: Images per step and device.
        num_workers: Processes that load images; the digits are in memory, so 0 is fastest.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        image_size: int = 8,
        degrees: float = 10.0,
        translate: float = 0.125,
        max_train_images: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(root=root, batch_size=batch_size, num_workers=num_workers, max_train_images=max_train_images)
        self.class_names = [str(digit) for digit in range(10)]
        self.image_size = image_size
        self.degrees = degrees
        self.translate = translate

    @property
    def preprocessing(self) -> Preprocessing:
        """How images reach the model: whole, with the training images' mean and standard deviation."""
        return Preprocessing(self.image_size, (MEAN,) * 3, (STD,) * 3, "bicubic", 1.0)

    def read_splits(self) -> None:
        """Read the images from the scikit-learn package and split them."""
        digits = load_digits()
        labels: list[int] = digits.target.tolist()
        preprocessing = self.preprocessing
        transform = self._train_transform(preprocessing)
        names = [f"digits/{position:04d}" for position in range(len(labels))]
        parts = stratified_split(names, labels, HELD_OUT, seed=0)
        if self.max_train_images is not None:
            train = parts["train"]
            chosen = self.choose_train_images([names[p] for p in train], [labels[p] for p in train], seed=0)
            parts["train"] = [train[place] for place in chosen]
        for split, positions in parts.items():
            self.splits[split] = ImageDataset(
                [Sample(names[position], labels[position]) for position in positions],
                transform if split == "train" else eval_transform(preprocessing),
                image_size=preprocessing.image_size,
                read=[to_image(digits.images[position]) for position in positions].__getitem__,
            )

    def _train_transform(self, preprocessing: Preprocessing) -> Transform:
        if self.degrees < 0 or not 0 <= self.translate <= 1:
            raise InputError(
                f"degrees is {self.degrees!r} and translate {self.translate!r}; expected an angle of 0 or more and a "
                "share in [0, 1]; give e.g. --data.degrees 10 --data.translate 0.125"
            )
        if not self.degrees and not self.translate:
            return eval_transform(preprocessing)
        shift = RandomAffine(self.degrees, translate=(self.translate, self.translate), interpolation=InterpolationMode.BILINEAR)
        return cast(Transform, Compose([shift, eval_transform(preprocessing)]))


def to_image(scan: np.ndarray) -> Image.Image:
    """One scan as RGB.

    Args:
        scan: Grey values 0..16, (8, 8); 16 is ink, which becomes white.
    """
    return Image.fromarray(np.rint(scan * (255 / 16)).astype(np.uint8)).convert("RGB")
