"""Small tasks, data and trainers in memory, for whole fits of a second."""

from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from dropkey_cli.data.dataset import Example
from dropkey_cli.data.preprocessing import Preprocessing
from dropkey_cli.tasks.classification import Classification

SIZE = 32
DEPTH = 3
PREPROCESSING = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.95)


class Images(LightningDataModule):
    """Images and labels from memory, in order, as one split for every stage."""

    def __init__(self, images: Tensor, labels: Tensor, *, batch_size: int = 4, num_classes: int = 10) -> None:
        super().__init__()
        self.examples = [
            Example(image=image, label=int(label), index=index, path=str(index), error="")
            for index, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        self.batch_size = batch_size
        self.class_names = [str(number) for number in range(num_classes)]
        self.preprocessing = PREPROCESSING

    def train_dataloader(self) -> DataLoader[Example]:
        return DataLoader(self.examples, batch_size=self.batch_size)  # type: ignore[arg-type]  # a list will do

    def val_dataloader(self) -> DataLoader[Example]:
        return self.train_dataloader()

    def test_dataloader(self) -> DataLoader[Example]:
        return self.train_dataloader()


class Reader(Classification):
    """Takes the first K pixels of an image as its logits, so that a test says what the network answers."""

    def forward(self, images: Tensor) -> Tensor:
        assert self.network is not None
        unused = sum(parameter.sum() * 0 for parameter in self.network.parameters())
        num_classes = len(self.trainer.datamodule.class_names)  # type: ignore[attr-defined]  # Lightning sets it
        return images[:, 0].flatten(1)[:, :num_classes] + unused


def task(cls: type[Classification] = Classification, **options: Any) -> Classification:  # noqa: ANN401 - any option
    model_args = {"depth": DEPTH, **options.pop("model_args", {})}
    return cls("test_vit", **{"pretrained": False, **options}, model_args=model_args)


def trainer(**options: Any) -> Trainer:  # noqa: ANN401 - any option
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0}
    return Trainer(**{**quiet, **defaults, **options})


def random_data(num_images: int = 8, **options: int) -> Images:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num_images, 3, SIZE, SIZE, generator=generator)
    return Images(images, torch.randint(0, 10, (num_images,), generator=generator), **options)


def logits_as_images(logits: Tensor) -> Tensor:
    images = torch.zeros(len(logits), 3, SIZE * SIZE)
    images[:, 0, : logits.shape[1]] = logits
    return images.reshape(-1, 3, SIZE, SIZE)


class Rates(Callback):
    """Keeps every parameter's learning rate at each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.decayed: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: object) -> None:  # noqa: ANN401
        groups = trainer.optimizers[0].param_groups
        names = {id(parameter): name for name, parameter in pl_module.network.named_parameters()}
        self.steps.append({names[id(p)]: group["lr"] for group in groups for p in group["params"]})
        self.decayed = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}

    @property
    def head(self) -> list[float]:
        return [rates["head.weight"] for rates in self.steps]


def rates(model: Classification, *, num_steps: int, **options: Any) -> Rates:  # noqa: ANN401 - the trainer's
    recorded = Rates()
    data = random_data(4 * num_steps, batch_size=4)
    trainer(callbacks=[recorded], limit_val_batches=0, log_every_n_steps=1, **options).fit(model, data)
    return recorded
