import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, top_k_accuracy_score
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.callbacks.drop_ratios import DropRatioMonitor
from dropkey_cli.callbacks.finite_loss import FiniteLoss
from dropkey_cli.callbacks.pace import Pace
from dropkey_cli.callbacks.progress import ProgressLines
from dropkey_cli.callbacks.weight_average import WeightAverage
from dropkey_cli.data.dataset import Batch
from dropkey_cli.data.digits import Digits
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.seeds import derived_seed
from dropkey_cli.tasks.classification import Classification
from dropkey_cli.tasks.mixing import BatchMixing
from tests.tasks.fits import (
    PREPROCESSING,
    SIZE,
    Images,
    Reader,
    logits_as_images,
    random_data,
    task,
    trainer,
)

# Metrics


def metrics_of(logits: Tensor, labels: Tensor, stage: str, *, batch_size: int) -> dict[str, float]:
    data = Images(logits_as_images(logits), labels, batch_size=batch_size, num_classes=logits.shape[1])
    [values] = getattr(trainer(), stage)(task(Reader), data, verbose=False)
    return cast(dict[str, float], values)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize(("stage", "prefix"), [("validate", "val"), ("test", "test")])
@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_metrics_equal_scikit_learns(stage: str, prefix: str, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.multinomial(torch.arange(1, 8).float(), 50, replacement=True, generator=generator)  # uneven
    logits = torch.randn(50, 7, generator=generator) + 1.5 * torch.eye(7)[labels]
    # Nothing tells acc1 from acc5 in the first batch: torchmetrics would merge their states from there on
    labels[:batch_size] = logits[:batch_size].argmax(1) if batch_size < 50 else labels[:batch_size]
    values = metrics_of(logits, labels, stage, batch_size=batch_size)
    true, predicted = labels.numpy(), logits.argmax(1).numpy()
    assert values == {
        f"{prefix}/loss": pytest.approx(log_loss(true, logits.softmax(1).numpy(), labels=range(7)), abs=1e-6),
        f"{prefix}/acc1": pytest.approx(accuracy_score(true, predicted)),
        f"{prefix}/acc5": pytest.approx(top_k_accuracy_score(true, logits.numpy(), k=5, labels=range(7))),
        f"{prefix}/balanced_acc": pytest.approx(balanced_accuracy_score(true, predicted)),
    }
    assert values[f"{prefix}/acc1"] != values[f"{prefix}/acc5"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_class_without_images_does_not_count_even_where_it_is_predicted() -> None:
    logits = torch.eye(4)[[0, 0, 1, 3]]
    values = metrics_of(logits, torch.tensor([0, 0, 1, 1]), "validate", batch_size=4)
    assert values["val/balanced_acc"] == pytest.approx((1 + 0.5) / 2)  # scikit-learn's definition
    assert values["val/acc1"] == pytest.approx(0.75)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize(("num_classes", "top5"), [(2, False), (5, False), (6, True)])
def test_top_5_only_of_more_than_5_classes(num_classes: int, top5: bool) -> None:
    values = metrics_of(torch.eye(num_classes), torch.arange(num_classes), "test", batch_size=3)
    assert ("test/acc5" in values) == top5
    assert values["test/acc1"] == 1


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_label_smoothing_is_in_the_training_loss_only() -> None:
    logits, labels = torch.randn(4, 10), torch.tensor([1, 2, 3, 4])
    run = trainer()
    run.fit(task(Reader, label_smoothing=0.2, dropkey=None), Images(logits_as_images(logits), labels))
    log_p = logits.log_softmax(1)
    plain = -log_p[range(4), labels].mean()
    smooth = 0.8 * plain - 0.2 * log_p.mean()
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(float(smooth), abs=1e-6)
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(float(plain), abs=1e-6)


def one_step(logits: Tensor, labels: Tensor, **options: Any) -> dict[str, float]:  # noqa: ANN401 - the task's
    """The metrics of a run of one training step, and of the validation after it."""
    run = trainer(callbacks=[BatchSeeds(0)])
    run.fit(task(Reader, dropkey=None, **options), Images(logits_as_images(logits), labels, batch_size=len(logits)))
    return {name: float(value) for name, value in run.callback_metrics.items()}


QUIET = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")


@QUIET
def test_class_weights_are_in_the_training_loss_only() -> None:
    logits, labels = torch.randn(4, 10), torch.tensor([1, 2, 3, 1])
    weights = [float(number) for number in range(10)]
    metrics = one_step(logits, labels, label_smoothing=0.0, class_weights=weights)
    losses = [-float(row.log_softmax(0)[label]) for row, label in zip(logits, labels, strict=True)]
    assert metrics["train/loss"] == pytest.approx((losses[0] + 2 * losses[1] + 3 * losses[2] + losses[3]) / 4, abs=1e-6)
    assert metrics["val/loss"] == pytest.approx(sum(losses) / 4, abs=1e-6)


@QUIET
def test_binary_cross_entropy_is_that_of_every_class() -> None:
    logits, labels = torch.randn(4, 10), torch.tensor([1, 2, 3, 1])
    p = logits.double().sigmoid()
    right = torch.eye(10, dtype=torch.bool)[labels]
    expected = -torch.where(right, p, 1 - p).log().mean()
    metrics = one_step(logits, labels, loss="bce", label_smoothing=0.0)
    assert metrics["train/loss"] == pytest.approx(float(expected), abs=1e-6)
    assert metrics["val/loss"] == pytest.approx(float(expected), abs=1e-6)


@QUIET
def test_mixed_batches_are_scored_by_the_larger_part_and_validation_is_not_mixed() -> None:
    logits, labels = torch.eye(10)[:8] * 5, torch.arange(8)
    metrics = one_step(logits, labels, mixup=1.0, label_smoothing=0.0)
    batch = Images(logits_as_images(logits), labels).examples
    torch.manual_seed(derived_seed(0, 0, 0, 0))
    given = Batch(
        image=logits_as_images(logits), label=labels, index=labels, path=[each["path"] for each in batch], error=[""] * 8
    )
    mixed = BatchMixing(mixup=1.0)(given, num_classes=10)
    mixed_logits = mixed["image"][:, 0].flatten(1)[:, :10].double()
    assert metrics["train/loss"] == pytest.approx(
        float(-(mixed["label"] * mixed_logits.log_softmax(1)).sum(1).mean()), abs=1e-6
    )
    larger = accuracy_score(mixed["label"].argmax(1).numpy(), mixed_logits.argmax(1).numpy())
    assert metrics["train/acc1"] == pytest.approx(larger) == 1  # the larger logit is the larger part's
    assert metrics["val/acc1"] == 1
    assert metrics["val/loss"] == pytest.approx(float(-logits.log_softmax(1)[range(8), labels].mean()), abs=1e-6)


class Labels(Classification):
    """Notes the dimensions of the labels of each step."""

    def loss(self, logits: Tensor, labels: Tensor, *, training: bool) -> Tensor:
        seen.append(labels.ndim)
        return super().loss(logits, labels, training=training)


seen: list[int] = []


@QUIET
@pytest.mark.parametrize(("off", "dimensions"), [(0.0, [2] * 8), (0.25, [2] * 6 + [1] * 2), (1.0, [1] * 8)])
def test_mixing_ends_before_the_run_does(off: float, dimensions: list[int]) -> None:
    seen.clear()
    run = trainer(limit_val_batches=0, max_epochs=2)
    model = task(Labels, cutmix=1.0, mix_off_share=off)
    run.fit(model, random_data(16))
    assert seen == dimensions
    assert "best" not in dict(model.plan_lines())  # without validation


def test_soft_labels_are_scored_by_the_larger_part() -> None:
    labels = torch.tensor([[0.4, 0.6], [0.9, 0.1]])
    assert task().metric_labels(labels).tolist() == [1, 0]
    assert task().metric_labels(torch.tensor([1, 0])).tolist() == [1, 0]


def test_probabilities_are_those_of_the_loss() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    sigmoids = logits.sigmoid()
    torch.testing.assert_close(task().probabilities(logits), logits.softmax(1))
    torch.testing.assert_close(task(loss="bce").probabilities(logits), sigmoids / sigmoids.sum())


class EpochEnds(Callback):
    """Keeps the metrics as callbacks and loggers see them when an epoch of training ends."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
@pytest.mark.parametrize("interval", [1, 2, 50])
def test_training_metrics_are_those_of_the_whole_epoch_whatever_the_interval(interval: int) -> None:
    logits, labels = torch.randn(18, 10), torch.randint(0, 10, (18,))
    ends = EpochEnds()
    run = trainer(callbacks=[ends], log_every_n_steps=interval, max_epochs=2, limit_val_batches=0)
    run.fit(task(Reader, label_smoothing=0.0, dropkey=None), Images(logits_as_images(logits), labels))
    accuracy = accuracy_score(labels.numpy(), logits.argmax(1).numpy())
    last_loss = log_loss(labels[16:].numpy(), logits[16:].softmax(1).numpy(), labels=range(10))  # four batches of 4, one of 2
    assert ends.metrics == [{"train/loss": pytest.approx(last_loss, abs=1e-6), "train/acc1": pytest.approx(accuracy)}] * 2


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_a_run_that_ends_within_an_epoch_has_its_metrics() -> None:
    logits, labels = torch.randn(12, 10), torch.randint(0, 10, (12,))
    ends = EpochEnds()
    run = trainer(callbacks=[ends], max_epochs=-1, max_steps=2, limit_val_batches=0)
    run.fit(task(Reader, dropkey=None), Images(logits_as_images(logits), labels))
    accuracy = accuracy_score(labels[:8].numpy(), logits[:8].argmax(1).numpy())
    assert [metrics["train/acc1"] for metrics in ends.metrics] == [pytest.approx(accuracy)]


class StopsAt(Callback):
    """Ends the run after a step, as early stopping does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_an_epoch_that_a_callback_stops_midway_is_written(tmp_path: Path) -> None:
    logits, labels = torch.randn(20, 10), torch.randint(0, 10, (20,))
    run = trainer(callbacks=[StopsAt(3)], logger=CSVLogger(tmp_path), log_every_n_steps=500, max_epochs=2, limit_val_batches=0)
    run.fit(task(Reader, label_smoothing=0.0, dropkey=None), Images(logits_as_images(logits), labels))
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    written = {name: [float(row[name]) for row in rows if row.get(name)] for name in ("train/loss", "train/acc1")}
    accuracy = accuracy_score(labels[:12].numpy(), logits[:12].argmax(1).numpy())
    assert written["train/acc1"] == [pytest.approx(accuracy)]  # of three batches of 4
    last_loss = log_loss(labels[8:12].numpy(), logits[8:12].softmax(1).numpy(), labels=range(10))
    assert written["train/loss"] == pytest.approx([last_loss] * len(written["train/loss"]), abs=1e-5)
    assert written["train/loss"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_is_an_error(label: int) -> None:
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        trainer().fit(task(), Images(torch.randn(4, 3, SIZE, SIZE), torch.tensor([0, label, 1, 2])))


class Reads(TorchDispatchMode):
    """Notes the step of every operator that makes the host wait for a device, since it must know the result to go on."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "masked_select",
        "equal",
        "bincount",
    )

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.trainer = trainer
        self.steps: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's
        if func.overloadpacket.__name__ in self.WAITING and self.trainer.fit_loop.epoch_loop.batch_idx >= 0:
            self.steps.add(self.trainer.global_step)
        return func(*args, **(kwargs or {}))


class Schedule(Callback):
    """Another ratio at each step, and none at all in every third."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        plan: Any = pl_module.dropkey_plan
        plan.set_ratios([0.1 / (1 + trainer.global_step)] * len(plan.layers))
        plan.enabled = trainer.global_step % 3 < 2


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_the_host_waits_for_the_device_only_where_it_logs(tmp_path: Path) -> None:
    pace = Pace()
    callbacks = [BatchSeeds(0), Schedule(), DropRatioMonitor(tmp_path), FiniteLoss(), pace, ProgressLines(pace)]
    run = trainer(callbacks=callbacks, logger=CSVLogger(tmp_path), log_every_n_steps=3, limit_val_batches=0)
    with Reads(run) as reads:
        run.fit(task(), random_data(32, batch_size=4))
    assert reads.steps == {3, 6, 8}  # the interval, and where the epoch ends


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("recipe", [{}, {"mixup": 0.8, "cutmix": 1.0, "erase_probability": 0.5, "class_weights": "balanced"}])
def test_no_step_waits_for_the_gpu(recipe: dict[str, Any]) -> None:
    class Strict(Callback):
        """Makes it an error to wait for the GPU, but in the first step and in those that log."""

        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            logs = (trainer.global_step + 1) % 5 == 0 or trainer.is_last_batch
            torch.cuda.set_sync_debug_mode("default" if logs or trainer.global_step == 0 else "error")

        def on_train_end(self, *_: object) -> None:
            torch.cuda.set_sync_debug_mode("default")

    callbacks = [
        Strict(),
        BatchSeeds(0),
        Schedule(),
        DropRatioMonitor(None),
        FiniteLoss(),
        ProgressLines(Pace()),
        WeightAverage(0.9),
    ]
    options = {"precision": "bf16-mixed", "max_epochs": 2, "limit_train_batches": 12, "limit_val_batches": 0}
    trainer(accelerator="gpu", callbacks=callbacks, log_every_n_steps=5, **options).fit(task(**recipe), Digits(image_size=SIZE))


def test_predictions_are_probabilities_in_float32() -> None:
    model = task(Reader)
    model.forward = lambda images: images.flatten(1)[:, :3].bfloat16()  # type: ignore[method-assign]
    batch: Any = {"image": torch.randn(4, 3, 2, 2)}
    probabilities = model.predict_step(batch, 0)["probability"]
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_monte_carlo_metrics_are_those_of_the_mean_over_masks(loss: str) -> None:
    images, labels = torch.randint(0, 256, (7, 3, SIZE, SIZE), dtype=torch.uint8), torch.arange(7)
    data = Images(images.float(), labels, batch_size=3)
    model = task(dropkey=DropKeySettings(ratio=0.5), loss=loss)
    model.mc_samples = 4
    run = trainer()
    (metrics,) = run.validate(model, data, verbose=False)
    assert model.monte_carlo is not None
    with torch.no_grad(), model.eval().dropkey_plan.sampling(torch.arange(7)):  # type: ignore[union-attr]  # patched
        samples = []
        for sample in range(4):
            torch.manual_seed(derived_seed(model.monte_carlo.seed, sample))
            logits = model(images.float()).double()
            samples.append(logits.sigmoid() if loss == "bce" else logits.softmax(-1))
    mean = torch.stack(samples).mean(0).numpy()
    each = [log_loss(labels == label, mean[:, label], labels=[False, True]) for label in range(10)]
    expected = sum(each) / 10 if loss == "bce" else log_loss(labels, mean, labels=range(10))
    assert metrics["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["val/acc1"] == pytest.approx(accuracy_score(labels, mean.argmax(1)))


# Options


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", [-0.1]),
        ("layer_decay", [0.0, -1.0, 1.1]),
        ("weight_decay", [-0.1]),
        ("warmup_share", [-0.1, 1.0]),
        ("label_smoothing", [-0.1, 1.0]),
        ("drop_path", [-0.1, 1.0]),
        ("patch_drop", [-0.1, 1.0]),
        ("mixup", [-0.1]),
        ("cutmix", [-0.1]),
        ("mix_probability", [-0.1, 1.1]),
        ("mix_off_share", [-0.1, 1.1]),
        ("erase_probability", [-0.1, 1.1]),
    ],
)
def test_values_out_of_range_are_refused(name: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(InputError, match=rf"^{name} is {value}; expected .*; give --model.{name}$"):
            Classification(**{name: value})  # type: ignore[arg-type]  # one number


@pytest.mark.parametrize(
    ("pretrained", "given", "expected"), [(True, None, 0.75), (False, None, 1.0), (True, 1.0, 1.0), (False, 0.5, 0.5)]
)
def test_default_layer_decay(pretrained: bool, given: float | None, expected: float) -> None:
    assert Classification(pretrained=pretrained, layer_decay=given).layer_decay == expected


# The network


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_network_fits_the_data_and_has_dropkey() -> None:
    model = task(dropkey=DropKeySettings(ratio=0.4))
    run = trainer()
    run.fit(model, random_data())
    assert model(torch.randn(2, 3, SIZE, SIZE)).shape == (2, 10)
    plan = model.dropkey_plan
    assert plan is not None
    assert [layer.ratio for layer in plan.layers] == pytest.approx([0.4, 0.2, 0.0])
    lines = dict(model.plan_lines())
    assert lines["DropKey"] == "DropKey in 3 attention layers: ratio 0.4 first, 0 last, 0.2 mean (decreasing, element)"
    assert lines["optimizer"] == "AdamW, lr 7.81e-06, layer decay 1, weight decay 0.05 (none on biases and norms)"
    description = model.describe()
    assert description["class_names"] == [str(number) for number in range(10)]
    assert description["model"] == {"name": "test_vit", "args": {"depth": 3}, "image_size": SIZE}
    assert description["dropkey"]["ratio"] == 0.4
    assert description["preprocessing"]["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_dropkey_null_trains_the_plain_network() -> None:
    model = task(dropkey=None)
    trainer(fast_dev_run=True).fit(model, random_data())
    assert model.dropkey_plan is None
    assert model.describe()["dropkey"] is None
    assert dict(model.plan_lines())["DropKey"] == "none"


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_weights_of_another_network_are_refused_in_a_sentence() -> None:
    model, data = task(), random_data()
    trainer(fast_dev_run=True).fit(model, data)
    weights = model.state_dict()
    saved: dict[str, Any] = {"dropkey": model.describe(), "state_dict": weights}
    model.on_load_checkpoint(saved)
    first, *others = weights
    damaged: list[dict[str, Any]] = [
        {name: weights[name] for name in others},
        {**weights, "more": torch.ones(1)},
        {**weights, first: weights[first][..., :1]},
        {**weights, first: "no tensor"},
    ]
    for tensors in damaged:
        with pytest.raises(InputError, match=rf"damaged, 1 of its tensors are not those .* such as '({first}|more)': give one"):
            model.on_load_checkpoint({**saved, "state_dict": tensors})
    data.class_names = [*data.class_names[:-1], "ten"]
    with pytest.raises(InputError, match=r"the checkpoint has class_names .*'9'\], the options .*'ten'\]"):
        model.on_load_checkpoint(saved)
    data.class_names[-1] = "9"
    data.preprocessing = replace(PREPROCESSING, image_size=64)
    with pytest.raises(InputError, match=r"the checkpoint has model .*'image_size': 32.*'image_size': 64"):
        model.on_load_checkpoint(saved)
    with pytest.raises(InputError, match="this checkpoint was not written by dropkey"):
        model.on_load_checkpoint({"state_dict": {}})


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Counts the graphs that would be compiled; they run as they are, so that no test waits for a C++ compiler."""
    counter = CompileCounter()
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_a_compiled_run_has_one_graph_for_training_and_one_for_validation(compiled: CompileCounter) -> None:
    model, plain = task(compile=True, lr=1e-3), task(lr=1e-3)
    for module in (model, plain):
        torch.manual_seed(0)
        trainer(max_epochs=2, callbacks=[BatchSeeds(0)]).fit(module, random_data(14))  # batches of 4, 4, 4 and 2
    assert compiled.frame_count == 2
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    assert dict(model.plan_lines())["compile"].startswith("the first step")
    assert "compile" not in dict(plain.plan_lines())


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_only_a_fit_compiles(compiled: CompileCounter) -> None:
    trainer().validate(task(compile=True), random_data(), verbose=False)
    assert compiled.frame_count == 0


def test_schedulers_of_torch_work_too() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    task().lr_scheduler_step(scheduler, None)  # as stochastic weight averaging puts one in the place of the task's
    assert optimizer.param_groups[0]["lr"] == 0.5
