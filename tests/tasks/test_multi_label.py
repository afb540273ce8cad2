from typing import Any, cast

import pytest
import torch
from lightning import LightningDataModule, Trainer
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor
from torch.utils.data import DataLoader

from dropkey_cli.data.dataset import Example
from dropkey_cli.data.preprocessing import Preprocessing
from dropkey_cli.errors import InputError
from dropkey_cli.tasks.classification import Classification
from dropkey_cli.tasks.multi_label import MultiLabelClassification

SIZE = 32


class Images(LightningDataModule):
    """Images and 0/1 labels (N, K) from memory, in order, as one split for every stage."""

    def __init__(self, images: Tensor, labels: Tensor, *, batch_size: int = 4, multi_label: bool = True) -> None:
        super().__init__()
        self.examples = [
            Example(image=image, label=label, index=index, path=str(index), error="")
            for index, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        self.batch_size = batch_size
        self.multi_label = multi_label
        self.class_names = [str(number) for number in range(labels.shape[1])]
        self.preprocessing = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.95)

    def val_dataloader(self) -> DataLoader[Example]:
        return DataLoader(self.examples, batch_size=self.batch_size)  # type: ignore[arg-type]  # a list will do

    train_dataloader = test_dataloader = predict_dataloader = val_dataloader


class Reader(MultiLabelClassification):
    """Takes the first K pixels of an image as its logits."""

    def forward(self, images: Tensor) -> Tensor:
        assert self.network is not None
        unused = sum(parameter.sum() * 0 for parameter in self.network.parameters())
        return images[:, 0].flatten(1)[:, : len(self.data.class_names)] + unused


def task(cls: type[Classification] = MultiLabelClassification, **options: Any) -> Classification:  # noqa: ANN401 - any option
    return cls("test_vit", pretrained=False, model_args={"depth": 2}, **options)


def trainer(**options: Any) -> Trainer:  # noqa: ANN401 - any option
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**{**quiet, "accelerator": "cpu", "devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0, **options})


def answers(num_images: int = 50, num_classes: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels (N, K), and images that `Reader` reads as those logits."""
    generator = torch.Generator().manual_seed(2)
    labels = (torch.rand(num_images, num_classes, generator=generator) < 0.3).float()
    logits = torch.randn(num_images, num_classes, generator=generator) + labels
    images = torch.zeros(num_images, 3, SIZE * SIZE)
    images[:, 0, :num_classes] = logits
    return logits, labels, images.reshape(-1, 3, SIZE, SIZE)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("batch_size", [7, 50])
def test_metrics_equal_scikit_learns(batch_size: int) -> None:
    logits, labels, images = answers()
    [values] = trainer().test(task(Reader), Images(images, labels, batch_size=batch_size), verbose=False)
    true, scores = labels.numpy(), logits.sigmoid().numpy()
    cross_entropy = -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log()).mean()
    assert values["test/map"] == pytest.approx(average_precision_score(true, scores, average="macro"))
    assert values["test/f1_macro"] == pytest.approx(f1_score(true, scores > 0.5, average="macro"))
    assert values["test/loss"] == pytest.approx(float(cross_entropy), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_predictions_are_probabilities_of_each_class_by_itself() -> None:
    logits, labels, images = answers()
    # Prediction knows no labels, so that data of one label per image are no reason to refuse
    [found] = cast(list[Any], trainer().predict(task(Reader), Images(images, labels, batch_size=50, multi_label=False)))
    assert torch.allclose(found["probability"], logits.sigmoid(), atol=1e-6)


def test_logits_of_probabilities_are_the_logits() -> None:
    logits = torch.tensor([[-80.0, -3.0, 0.0, 2.0, 9.0]])
    model = MultiLabelClassification("test_vit")
    assert torch.allclose(model.logits_of(model.probabilities(logits)), logits, rtol=1e-3, atol=1e-6)
    assert model.logits_of(torch.tensor([0.0, 1.0])).isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_cross_entropy_of_each_class_by_itself(smoothing: float) -> None:
    logits, labels, _ = answers()
    model = MultiLabelClassification("test_vit", label_smoothing=smoothing)
    for training in (True, False):
        part = smoothing if training else 0.0
        wanted = torch.where(labels == 1, 1 - part + part / 6, part / 6).double()
        p = logits.double().sigmoid()
        expected = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()
        assert float(model.loss(logits, labels, training=training)) == pytest.approx(float(expected), rel=1e-6)
    assert model.loss(logits.bfloat16(), labels.bfloat16(), training=True).dtype == torch.float32


def test_the_loss_that_does_not_act_is_refused() -> None:
    assert task(loss="bce").loss_name == task().loss_name == "bce"
    with pytest.raises(
        InputError, match=r"loss is 'cross_entropy'; expected bce, for several labels per image; give --model.loss"
    ):
        task(loss="cross_entropy")


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_labels_of_the_other_kind_are_refused_before_the_network_is_built() -> None:
    _, labels, images = answers(8)
    for model, data in (
        (task(Classification), Images(images, labels)),
        (task(), Images(images, labels, multi_label=False)),
    ):
        with pytest.raises(InputError, match="the data has "):
            trainer().fit(model, data)
        assert model.network is None


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_training_learns_each_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(64, 3, generator=generator) < 0.5).float()
    images = 0.3 * torch.randn(64, 3, SIZE, SIZE, generator=generator) + 2 * labels[:, :, None, None]
    model = task(lr=1e-3, label_smoothing=0.0)
    run = trainer(max_epochs=6)
    run.fit(model, Images(images, labels, batch_size=16))
    assert float(run.callback_metrics["val/map"]) > 0.95
    assert float(run.callback_metrics["train/f1_micro"]) > 0.7
    lines = dict(model.plan_lines())
    assert lines["loss"] == "binary cross-entropy of each class, label smoothing 0"
    assert lines["best"] == ("the checkpoint with the highest val/map, the mean over classes of their average precision")
