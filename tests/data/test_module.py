import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from dropkey_cli.data.dataset import Batch, ImageDataset, Sample
from dropkey_cli.data.loading import TrainSampler
from dropkey_cli.data.module import ImageData, default_num_workers
from dropkey_cli.data.preprocessing import Preprocessing, eval_transform
from dropkey_cli.errors import InputError


class Squares(ImageData):
    """Ten grey images for training, four for validation, none for a test."""

    reads = 0

    def __init__(self, root: str | None = None, *, batch_size: int = 4, num_workers: int | None = 0) -> None:
        super().__init__(root=root, batch_size=batch_size, num_workers=num_workers)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(4, (0.5,) * 3, (0.25,) * 3, "nearest", 1.0)

    def read_splits(self) -> None:
        self.reads += 1
        for split, count in (("train", 10), ("val", 4)):
            self.splits[split] = ImageDataset(
                [Sample(f"{split}/{number}", number % 2) for number in range(count)],
                eval_transform(self.preprocessing),
                image_size=4,
                read=[Image.new("RGB", (4, 4), (number,) * 3) for number in range(count)].__getitem__,
            )


def order(loader: object) -> list[int]:
    return [index for batch in cast(list[Batch], loader) for index in batch["index"].tolist()]


def test_training_images_are_shuffled_and_none_is_dropped() -> None:
    data = Squares()
    data.setup("fit")
    loader = data.train_dataloader()
    first = order(loader)
    cast(TrainSampler, loader.sampler).set_epoch(1)
    second = order(loader)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert order(data.val_dataloader()) == [0, 1, 2, 3]


def test_setup_reads_once_and_never_for_prediction() -> None:
    data = Squares()
    data.setup("predict")
    assert data.reads == 0
    for stage in ("fit", "validate", "test"):
        data.setup(stage)
    assert data.reads == 1


def test_test_without_test_images_says_what_to_do() -> None:
    data = Squares()
    data.setup("test")
    with pytest.raises(InputError, match=r"Squares has no test images \(splits: train, val\); .*test_fraction .*validate"):
        data.test_dataloader()


def test_prediction_goes_over_all_files_and_records_unreadable_ones(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7), "white").save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"broken")
    batch = cast(Batch, next(iter(Squares(str(tmp_path)).predict_dataloader())))
    assert batch["path"] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert batch["label"].tolist() == [-1, -1]
    assert "cannot identify image file" in batch["error"][0]
    assert batch["error"][1] == ""
    assert [set(image.flatten().tolist()) for image in batch["image"]] == [{0}, {255}]


def test_prediction_without_a_path_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"--data\.root is not given; expected the image or folder"):
        Squares().predict_dataloader()
    with pytest.raises(InputError, match=r"--data\.root is not given; expected the image or folder"):
        Squares("").predict_dataloader()
    with pytest.raises(InputError, match=r"'nowhere' does not exist"):
        Squares("nowhere").predict_dataloader()


class Seen(LightningModule):
    """Keeps the batches that each kind of step gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: dict[str, list[Batch]] = {"training": [], "validation": [], "test": [], "predict": []}

    def training_step(self, batch: Batch, _: int) -> Tensor:
        self.batches["training"].append(batch)
        return self.weight * 1

    def validation_step(self, batch: Batch, _: int) -> None:
        self.batches["validation"].append(batch)

    def test_step(self, batch: Batch, _: int) -> None:
        self.batches["test"].append(batch)

    def predict_step(self, batch: Batch, _: int) -> Tensor:
        self.batches["predict"].append(batch)
        return batch["index"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32)]
)
def test_every_step_gets_normalised_images_in_the_runs_precision(precision: str, dtype: torch.dtype, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "nine.png")
    data, model = Squares(str(tmp_path)), Seen()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, precision=precision, max_epochs=1, **quiet)  # type: ignore[arg-type]  # names
    trainer.fit(model, data)
    data.splits["test"] = data.splits["val"]
    trainer.test(model, data, verbose=False)
    trainer.predict(model, data, return_predictions=False)
    for stage, images in (("training", range(10)), ("validation", range(4)), ("test", range(4)), ("predict", [9])):
        batches = model.batches[stage]
        seen = {int(index): image for batch in batches for index, image in zip(batch["index"], batch["image"], strict=True)}
        assert sorted(seen) == list(range(len(images)))
        for index, number in enumerate(images):
            assert seen[index].dtype == dtype
            expected = torch.full((3, 4, 4), (number / 255 - 0.5) / 0.25)
            torch.testing.assert_close(seen[index].float(), expected, atol=1e-6, rtol=8e-3 if dtype == torch.bfloat16 else 1e-6)
        assert all(isinstance(path, str) for batch in batches for path in batch["path"])


def test_workers_persist_only_where_there_are_any() -> None:
    for num_workers in (0, 1):
        data = Squares(num_workers=num_workers)
        data.setup("fit")
        loader = data.train_dataloader()
        assert loader.num_workers == num_workers
        assert loader.persistent_workers == (num_workers > 0)


@pytest.mark.parametrize("available", [True, False])
def test_memory_is_pinned_where_there_is_a_gpu(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    data = Squares()
    data.setup("fit")
    assert data.train_dataloader().pin_memory == available


def test_no_more_workers_than_batches() -> None:
    data = Squares(num_workers=8)
    data.setup("fit")
    assert data.val_dataloader().num_workers == 1


def test_default_number_of_workers_is_the_usable_cores_up_to_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    for cores, expected in ((3, 3), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert default_num_workers() == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_num_workers() == 1
    assert Squares(num_workers=None).num_workers == 1


def test_impossible_loader_settings() -> None:
    with pytest.raises(InputError, match="batch_size is 0; expected 1 or more"):
        Squares(batch_size=0)
    with pytest.raises(InputError, match="num_workers is -1; expected 0 or more"):
        Squares(num_workers=-1)


class Process:
    """The little of a trainer that a data module looks at, for one of two processes; the first's list is shared."""

    distributed_sampler_kwargs = None
    shared: Any = None

    def __init__(self, rank: int) -> None:
        self.is_global_zero = rank == 0
        self.strategy = self

    def broadcast(self, value: Any) -> Any:  # noqa: ANN401 - as Lightning's
        Process.shared = value if self.is_global_zero else Process.shared
        return Process.shared


@pytest.mark.parametrize("paths", [["b.png", "a.png"], []])
def test_standard_input_is_read_by_the_first_process_and_shared(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.BytesIO("".join(f"{path}\n" for path in paths).encode())
    for rank in range(2):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=text) if rank == 0 else None)
        data = Squares("-")
        data.trainer = cast(Any, Process(rank))
        if not paths:
            with pytest.raises(InputError, match=r"--data\.root - and nothing came on standard input"):
                data.predict_dataloader()
            continue
        (batch,) = cast(list[Batch], list(data.predict_dataloader()))
        assert batch["path"] == paths
        assert all("No such file" in error for error in batch["error"])
