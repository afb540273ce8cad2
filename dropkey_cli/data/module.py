"""What every source of images shares: data loaders for training, validation, test and prediction."""

import math
import os
from collections.abc import Sequence

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from dropkey_cli.data.dataset import NO_LABEL, Batch, Example, ImageDataset, Sample
from dropkey_cli.data.loading import EvalSampler, TrainSampler, leave_signals_to_the_run, process_of, run_seed
from dropkey_cli.data.paths import STDIN, paths_of
from dropkey_cli.data.preprocessing import Preprocessing, eval_transform
from dropkey_cli.data.split import stratified_subset
from dropkey_cli.errors import InputError


class ImageData(LightningDataModule):
    """Images with labels. A source gives ``preprocessing`` and fills the rest in ``read_splits``.

    Attributes:
        remedy: How a split gets images, with {} for its name.
        multi_label: Whether an image may have any number of classes, and not exactly one.
        class_names: Name of each class, in label order; complete after ``setup``.
        splits: The data sets ``train``, ``val`` and, where there is one, ``test``; filled by ``setup``.
        split_note: One sentence about a split that was made here, or None.

    Args:
        root: The images to predict, as `paths_of` takes them; sources that read folders also find their splits here.
        batch_size: Images per step and device.
        num_workers: Processes that load images; by default one per usable core, at most 8. 0 needs no extra process.
        repeats: How often an epoch uses an image, each time augmented anew.
        max_train_images: How many of the training images are used; None for all.
    """

    remedy = "put images in {}/"
    multi_label = False

    def __init__(
        self,
        *,
        root: str | None,
        batch_size: int,
        num_workers: int | None,
        repeats: int = 1,
        max_train_images: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}; expected 1 or more; give e.g. --data.batch_size 64")
        if num_workers is not None and num_workers < 0:
            raise InputError(f"num_workers is {num_workers!r}; expected 0 or more; give e.g. --data.num_workers 4")
        if repeats < 1:
            raise InputError(f"repeats is {repeats!r}; expected 1 or more; give e.g. --data.repeats 1")
        if max_train_images is not None and max_train_images < 1:
            raise InputError(
                f"max_train_images is {max_train_images!r}; expected 1 or more, or null for all; "
                "give e.g. --data.max_train_images 500"
            )
        self.root = root
        self.repeats = repeats
        self.max_train_images = max_train_images
        self.batch_size = batch_size
        self.num_workers = default_num_workers() if num_workers is None else num_workers
        self.class_names: list[str] = []
        self.splits: dict[str, ImageDataset] = {}
        self.split_note: str | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """How images reach the model."""
        raise NotImplementedError

    def read_splits(self) -> None:
        """Fill ``class_names``, ``splits`` and ``split_note``."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Find the labelled images, once; prediction needs none and looks for none.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
        """
        if stage != "predict" and not self.splits:
            self.read_splits()

    def plan_lines(self) -> list[tuple[str, str]]:
        """What a user should know before training, as (name, text): classes, images per split, preprocessing."""
        names = ", ".join(self.class_names[:5]) + (", …" if len(self.class_names) > 5 else "")
        sizes = " · ".join(f"{split} {len(dataset)}" for split, dataset in self.splits.items())
        image = self.preprocessing
        mean, std = (_listed(values) for values in (image.mean, image.std))
        lines = [("data", f"{len(self.class_names)} classes ({names}); images: {sizes}; batches of {self.batch_size}")]
        if self.split_note:
            lines.append(("split", self.split_note))
        size = f"{image.image_size} × {image.image_size}"
        channels = "" if image.channels == 3 else f"{image.channels} channel(s), "
        return [*lines, ("images", f"{size} pixels, {channels}{image.interpolation}, mean {mean}, std {std}")]

    def choose_train_images(self, names: Sequence[str], strata: Sequence[int], *, seed: int) -> list[int]:
        """Positions of the training images that ``max_train_images`` leaves; the note on the split says how many.

        Args:
            names: The names of the training images, which decide.
            strata: The class that each is chosen by.
            seed: Another number gives another choice.
        """
        count, total, num_classes = self.max_train_images, len(names), len(set(strata))
        assert count is not None, "whoever has no such number takes all"
        if count < num_classes:
            raise InputError(
                f"max_train_images is {count!r}; expected at least {num_classes}, one image of each class; "
                f"give e.g. --data.max_train_images {num_classes}, or null for all {total}"
            )
        text = f"{count} of" if count < total else "All"
        note = f"{text} {total} training images are used (max_train_images {count})."
        self.split_note = f"{self.split_note} {note}" if self.split_note else note
        return stratified_subset(names, strata, count, seed=seed)

    def train_dataloader(self) -> DataLoader[Example]:
        """The training images, shuffled anew in every epoch; the last batch may be smaller."""
        dataset = self._split("train", self.remedy.format("train"))
        processes = process_of(self.trainer)
        return self._loader(dataset, TrainSampler(dataset, seed=run_seed(self.trainer), repeats=self.repeats, **processes))

    def val_dataloader(self) -> DataLoader[Example]:
        """The validation images, in order."""
        return self._eval_loader(self._split("val", self.remedy.format("val")))

    def test_dataloader(self) -> DataLoader[Example]:
        """The test images, in order."""
        remedy = f"{self.remedy.format('test')}, give --data.test_fraction 0.1 when training, or use dropkey validate"
        return self._eval_loader(self._split("test", remedy))

    def predict_dataloader(self) -> DataLoader[Example]:
        """The images that ``root`` stands for, in order; one that cannot be read says so in its ``error`` and stops nothing."""
        if not self.root:
            raise InputError("--data.root is not given; expected the image or folder to predict; give --data.root PATH")
        preprocessing = self.preprocessing
        samples = [Sample(path, NO_LABEL) for path in self._paths(self.root, preprocessing.channels)]
        dataset = ImageDataset(
            samples,
            eval_transform(preprocessing),
            image_size=preprocessing.image_size,
            channels=preprocessing.channels,
            on_error="record",
        )
        return self._eval_loader(dataset)

    def _paths(self, root: str, channels: int) -> list[str]:
        if root != STDIN or self.trainer is None:
            return paths_of(root, channels=channels)
        own = paths_of(root) if self.trainer.is_global_zero else []  # only one process can read what comes in once
        paths: list[str] = self.trainer.strategy.broadcast(own)
        if not paths:
            raise InputError("--data.root - and nothing came on standard input; expected a path per line, as from find")
        return paths

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise on the device; until there an image is 8-bit, a quarter of its floats."""
        images = self.preprocessing.normalize(batch["image"])
        precision = self.trainer.precision_plugin  # type: ignore[union-attr]  # Lightning sets the trainer
        return {**batch, "image": precision.convert_input(images)}  # what it did to the batch came before

    def _split(self, name: str, remedy: str) -> ImageDataset:
        if name not in self.splits:
            found = ", ".join(self.splits) or "none"
            raise InputError(f"{type(self).__name__} has no {name} images (splits: {found}); {remedy}")
        return self.splits[name]

    def _eval_loader(self, dataset: ImageDataset) -> DataLoader[Example]:
        return self._loader(dataset, EvalSampler(dataset, **process_of(self.trainer)))

    def _loader(self, dataset: ImageDataset, sampler: TrainSampler | EvalSampler) -> DataLoader[Example]:
        num_workers = min(self.num_workers, math.ceil(len(sampler) / self.batch_size))  # one image, one process
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=num_workers,
            worker_init_fn=leave_signals_to_the_run,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
        )


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values[:4]) + (" …" if len(values) > 4 else "")


def default_num_workers() -> int:
    """One loading process per core that this process may use, at most 8."""
    return min(8, usable_cores())


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        cores = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    return cores or 1
