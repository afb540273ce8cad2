"""What is done to whole batches in training, on the device: random erasing, mixup and cutmix."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp

from dropkey_cli.data.dataset import Batch, counted
from dropkey_cli.tasks.losses import soft_labels
from dropkey_cli.tasks.options import check_option, check_share


@dataclass(frozen=True)
class BatchMixing:
    """Erases, then mixes, the images of a batch and their labels. All that is random follows torch's generators.

    Args:
        mixup: Alpha of mixup's beta distribution; 0 for none.
        cutmix: Alpha of cutmix's; 0 for none. With both, each mixed batch takes one of them, evenly.
        mix_probability: Share of batches that are mixed, in [0, 1].
        erase_probability: Share of images in which a rectangle is replaced by noise, in [0, 1].

    Raises:
        InputError: If one of them cannot be.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    erase_probability: float = 0.0

    def __post_init__(self) -> None:
        """Check the values where they enter."""
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            check_option(name, alpha, alpha >= 0, "0 or more")
        for name in ("mix_probability", "erase_probability"):
            check_share(name, getattr(self, name), including_1=True)

    @property
    def mixes(self) -> bool:
        """Whether any batch is mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0

    @property
    def acts(self) -> bool:
        """Whether any batch is changed."""
        return self.mixes or self.erase_probability > 0

    def __call__(self, batch: Batch, *, num_classes: int, mix: bool = True) -> Batch:
        """The batch with other images and, where they are mixed, labels as shares of the classes (B, K).

        Padding and unreadable images stay as they are, and no other image gets a part of them.

        Args:
            batch: Normalised.
            num_classes: Number of classes K.
            mix: False only erases.
        """
        kept = counted(batch)
        if not kept:
            return batch
        if len(kept) == len(batch["path"]):
            images, labels = self._changed(batch["image"], batch["label"], num_classes=num_classes, mix=mix)
            return {**batch, "image": images, "label": labels}
        images, labels = self._changed(batch["image"][kept], batch["label"][kept], num_classes=num_classes, mix=mix)
        all_images = batch["image"].clone()
        all_labels = labels.new_zeros(len(batch["path"]), *labels.shape[1:])
        all_images[kept], all_labels[kept] = images, labels
        return {**batch, "image": all_images, "label": all_labels}

    def _changed(self, images: Tensor, labels: Tensor, *, num_classes: int, mix: bool) -> tuple[Tensor, Tensor]:
        if self.erase_probability > 0:
            images = erased(images, self.erase_probability)
        if mix and self.mixes and torch.rand(()).item() < self.mix_probability:
            images, labels = self._mixed(images, soft_labels(labels, num_classes))
        return images, labels

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        both = self.mixup > 0 and self.cutmix > 0
        takes_cutmix = torch.rand(()).item() < 0.5 if both else self.cutmix > 0
        transform = CutMix(alpha=self.cutmix) if takes_cutmix else MixUp(alpha=self.mixup)
        # torchvision pairs neighbours, which may be copies of one image
        order = torch.randperm(len(images), device=images.device)
        mixed: tuple[Tensor, Tensor] = transform(images[order], labels[order])
        back = order.argsort()
        return mixed[0][back], mixed[1][back]


def erased(images: Tensor, probability: float) -> Tensor:
    """Images (B, C, height, width) of which some have a rectangle of 2 to 33 % of the area replaced by noise.

    Args:
        images: Normalised, so that noise of mean 0 and variance 1 looks like them.
        probability: Share of images that are erased.
    """
    erase: Any = RandomErasing(probability=probability, mode="pixel", device=images.device)  # type: ignore[no-untyped-call]
    with _python_follows_torch():
        result: Tensor = erase(images.clone())
    return result


@contextmanager
def _python_follows_torch() -> Iterator[None]:
    """Let Python's random numbers, which timm draws, follow torch's generator; afterwards they go on where they were."""
    before = random.getstate()
    random.seed(int(torch.randint(2**62, ()).item()))
    try:
        yield
    finally:
        random.setstate(before)
