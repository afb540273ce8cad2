"""What all sources of labelled images share: how images reach the model and how training images are augmented."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dropkey_cli.data.augmentation import Augmentation
from dropkey_cli.data.dataset import ImageDataset, Sample
from dropkey_cli.data.module import ImageData
from dropkey_cli.data.preprocessing import Preprocessing, eval_transform, train_transform
from dropkey_cli.errors import InputError


class ImageSource(ImageData):
    """Labelled images of any size and kind; a source subclasses it and hands on these options as ``**options``.

    Attributes:
        augmentation: How training images are changed at random.

    Args:
        root: The file or folder to predict; sources that read folders also find their splits here.
        channels: Channels that the model sees: 3 for red, green and blue (the default), 1 for grey, 4 with
            transparency; any other number is read from .npy arrays (height, width, channels) of 8 or 16 bits.
        image_size: Height and width that the model sees, in pixels.
        mean: Mean of each channel, for values in [0, 1]; by default the model's, for other than 3 channels its average.
        std: Standard deviation of each channel, for values in [0, 1].
        interpolation: How images are resized, e.g. ``bicubic``.
        crop_pct: Share of the resized image that the centre crop keeps in evaluation.
        crop_mode: What evaluation does with an image that is not square: center, squash or border.
        repeats: How often an epoch uses an image, augmented anew each time; it is as long as ever, with so much fewer images
            (repeated augmentation, arXiv:1902.05509).
        max_train_images: Train on only so many of the training images: of each class its share, at least one, and always the
            same by their file names (and split_seed); an image of several classes goes by its rarest. Those of a smaller
            number are among those of a larger one; the images of validation and test stay the same. null takes all.
        on_error: What an image that cannot be read does: raise ends the run with its name; skip leaves it out, of training
            and of metrics, names it and counts it.
        batch_size: Images per step and device.
        num_workers: Processes that load images; by default one per usable core, at most 8. 0 needs no extra process.
    """

    def __init__(
        self,
        *,
        root: str | None,
        channels: int | None = None,
        image_size: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
        crop_mode: str | None = None,
        repeats: int = 1,
        max_train_images: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        batch_size: int = 64,
        num_workers: int | None = None,
        **augmentation: Any,  # noqa: ANN401 - those of Augmentation
    ) -> None:
        super().__init__(
            root=root,
            batch_size=batch_size,
            num_workers=num_workers,
            repeats=repeats,
            max_train_images=max_train_images,
        )
        self.channels = channels
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.crop_pct = crop_pct
        self.crop_mode = crop_mode
        self.on_error = on_error
        self.augmentation = Augmentation(**augmentation)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images reach the model.

        Raises:
            InputError: If one of the values is neither given nor filled in from the model.
        """
        size, mean, std = self.image_size, self.mean, self.std
        interpolation, crop_pct = self.interpolation, self.crop_pct
        if size is None or mean is None or std is None or interpolation is None or crop_pct is None:
            names = ("image_size", "mean", "std", "interpolation", "crop_pct")
            missing = [name for name in names if getattr(self, name) is None]
            raise InputError(
                f"{', '.join(missing)} not given and not known from the model; "
                f"give {', '.join('--data.' + name for name in missing)}"
            )
        return Preprocessing(size, mean, std, interpolation, crop_pct, self.crop_mode or "center", self.channels or 3)

    def setup(self, stage: str) -> None:
        """Find the images; before that, refuse what they cannot be prepared with."""
        if stage != "predict":
            train_transform(self.preprocessing, self.augmentation)
        super().setup(stage)

    def datasets(self, samples: Mapping[str, Sequence[Sample]]) -> dict[str, ImageDataset]:
        """The images of each split as this source's options say: those of ``train`` augmented.

        Args:
            samples: The images of each split.
        """
        preprocessing = self.preprocessing
        train = train_transform(preprocessing, self.augmentation)
        return {
            split: ImageDataset(
                samples[split],
                train if split == "train" else eval_transform(preprocessing),
                image_size=preprocessing.image_size,
                channels=preprocessing.channels,
                on_error=self.on_error,
                num_labels=len(self.class_names) if self.multi_label else None,
            )
            for split in ("train", "val", "test")
            if split in samples
        }
