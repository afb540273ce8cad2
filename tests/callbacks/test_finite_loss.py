import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from dropkey_cli.callbacks import finite_loss
from dropkey_cli.callbacks.finite_loss import MOST_SKIPPED_IN_A_ROW, FiniteLoss, can_leave_out_on_device
from dropkey_cli.errors import RunError
from tests.callbacks.nonfinite_runs import OPTIMIZERS, Task, assert_same, batches, files, learn_by_hand, network, trainer

NAN, INF = math.nan, math.inf

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host reads as if it had to wait for the device."""
    monkeypatch.setattr(finite_loss, "reading_is_free", lambda device: False)


# Skipping


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch_norm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_skipped_step_changes_nothing(optimizer: str, norm: bool, bad: float) -> None:
    data = batches(7, {0: bad, 3: bad, 4: bad})
    task = Task(data, optimizer=optimizer, net=network(norm=norm))
    callback = FiniteLoss("skip")
    run = trainer(callbacks=[callback])
    run.fit(task)
    net, stepper = learn_by_hand(data, optimizer=optimizer, net=network(norm=norm), leave_out={0, 3, 4})
    assert_same(task.network, net)
    mine, theirs = run.optimizers[0].state_dict()["state"], stepper.state_dict()["state"]
    for key, state in theirs.items():  # moments and step counts
        assert all(torch.equal(torch.as_tensor(mine[key][name]), torch.as_tensor(value)) for name, value in state.items())
    assert callback.skipped_batches == 3
    assert not hasattr(run.optimizers[0], "found_inf")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_one_bad_batch_takes_its_accumulated_step_along(optimizer: str, clip: float | None) -> None:
    data = batches(9, {4: NAN})
    task, callback = Task(data, optimizer=optimizer), FiniteLoss("skip")
    trainer(callbacks=[callback], accumulate_grad_batches=3, gradient_clip_val=clip).fit(task)
    if clip is None:
        assert_same(task.network, learn_by_hand(data, optimizer=optimizer, net=network(), leave_out={1}, accumulate=3)[0])
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    assert callback.skipped_batches == 3


def test_nothing_changes_in_a_finite_run() -> None:
    data = batches(6)
    tasks = [Task(data), Task(data)]
    trainer(callbacks=[FiniteLoss("stop")]).fit(tasks[0])
    trainer(callbacks=[FiniteLoss("skip")]).fit(tasks[1])
    for task in tasks:
        assert_same(task.network, learn_by_hand(data, optimizer="fused", net=network(), leave_out=set())[0])


class Poisoned(torch.autograd.Function):
    """The identity, whose gradient is NaN in a chosen call."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, bad: bool) -> Tensor:  # noqa: ANN401 - torch's own
        ctx.bad = bad
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's own
        return gradient * (NAN if ctx.bad else 1), None


class BadGradients(Task):
    """Its loss is finite always, its gradients are not in batch 2."""

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        return Poisoned.apply(super().training_step(batch, index), index == 2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradients_count_like_the_loss(optimizer: str) -> None:
    data = batches(5)
    task, callback = BadGradients(data, optimizer=optimizer), FiniteLoss("skip")
    trainer(callbacks=[callback]).fit(task)
    assert_same(task.network, learn_by_hand(data, optimizer=optimizer, net=network(), leave_out={2})[0])
    assert callback.skipped_batches == 1
    with pytest.raises(
        RunError, match=r"^the gradients are not finite at step 3 \(epoch 1, batch 3: 2_0.png, .*loss is [12]\.\d"
    ):
        trainer(callbacks=[FiniteLoss()]).fit(BadGradients(data))


def test_skipped_batches_are_said_and_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = CSVLogger(tmp_path)
    trainer(callbacks=[FiniteLoss("skip")], logger=logger, log_every_n_steps=3).fit(Task(batches(8, {1: NAN, 3: INF})))
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().split()
    assert rows == ["step,train/skipped_batches", "2,1.0", "5,2.0", "7,2.0"]
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: the loss is nan at step 2 (epoch 1, batch 2: 1_0.png, 1_1.png, 1_2.png and 1 more)")
    assert last == "warning: 2 batches were skipped in all, since loss or gradients were not finite"


def test_interval_0_logs_nothing(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer(callbacks=[FiniteLoss("skip")], logger=logger, log_every_n_steps=0).fit(Task(batches(4, {1: NAN})))
    assert not (Path(logger.log_dir) / "metrics.csv").exists()


def test_a_finite_run_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(callbacks=[FiniteLoss("skip")]).fit(Task(batches(2)))
    assert capsys.readouterr().out == ""


def test_too_many_in_a_row_end_the_run() -> None:
    first = 5
    skipped = dict.fromkeys(range(first, first + MOST_SKIPPED_IN_A_ROW), NAN)
    trainer(callbacks=[FiniteLoss("skip")]).fit(Task(batches(40, skipped | dict.fromkeys(range(30, 40), NAN))))
    many = skipped | {first + MOST_SKIPPED_IN_A_ROW: NAN}
    with pytest.raises(RunError, match=r"the loss is nan at step 26 .* it is step 21 in a row .* nothing is learnt"):
        trainer(callbacks=[FiniteLoss("skip")]).fit(Task(batches(40, many)))


def test_a_run_that_skipped_everything_failed() -> None:
    with pytest.raises(RunError, match=r"^all 3 steps were skipped, so nothing was learnt"):
        trainer(callbacks=[FiniteLoss("skip")]).fit(Task(batches(3, dict.fromkeys(range(3), NAN))))


# Stopping


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_message_says_where_it_began(accumulate: int) -> None:
    task = Task(batches(9, {7: NAN}))
    where = f"step {8 if accumulate == 1 else 3} "
    with pytest.raises(RunError, match=rf"^the loss is nan at {where}\(epoch 1, batch 8: 7_0\.png, .* 1 more\); .*") as error:
        trainer(callbacks=[FiniteLoss()], accumulate_grad_batches=accumulate).fit(task)
    assert "--model.lr (it is 0.1 now)" in str(error.value)
    assert "--on_nonfinite_loss skip" in str(error.value)
    assert "\n" not in str(error.value)


def test_epochs_count_from_1() -> None:
    class Later(Task):
        def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
            return super().training_step(batch, index) * (INF if (self.current_epoch, index) == (1, 2) else 1)

    with pytest.raises(RunError, match=r"^the loss is inf at step 7 \(epoch 2, batch 3: "):
        trainer(callbacks=[FiniteLoss()], max_epochs=3).fit(Later(batches(4)))


def test_the_layer_is_named() -> None:
    class Overflow(nn.Module):
        calls = 0

        def forward(self, value: Tensor) -> Tensor:
            self.calls += 1
            return value * (INF if self.calls > 3 else 1)

    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), Overflow(), nn.Linear(6, 5))
    with pytest.raises(RunError, match=r"at step 4 .*; the first value that is not finite comes out of 2; "):
        trainer(callbacks=[FiniteLoss()]).fit(Task(batches(6), net=net))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_stay_as_they_were_until_the_host_knows(on_gpu: None, optimizer: str) -> None:
    data = batches(10, {3: NAN})
    task = Task(data, optimizer=optimizer)
    with pytest.raises(RunError, match=r"the loss is nan at step 4 \(epoch 1, batch 4: "):
        trainer(callbacks=[FiniteLoss()], log_every_n_steps=8).fit(task)
    assert_same(task.network, learn_by_hand(data[:3], optimizer=optimizer, net=network(), leave_out=set())[0])


@pytest.mark.parametrize(("interval", "bad", "read"), [(4, 1, 4), (4, 9, 10), (0, 1, 10), (50, 2, 10)])
def test_the_host_learns_of_it_at_the_interval_and_at_the_epochs_end(on_gpu: None, interval: int, bad: int, read: int) -> None:
    run = trainer(callbacks=[FiniteLoss()], log_every_n_steps=interval)
    with pytest.raises(RunError, match=f"at step {bad + 1} "):
        run.fit(Task(batches(10, {bad: NAN})))
    assert run.global_step == read


def test_the_last_step_of_a_limited_run_is_looked_at_with_its_images(on_gpu: None) -> None:
    with pytest.raises(RunError, match=r"at step 3 .*; the images themselves are not finite; "):
        trainer(callbacks=[FiniteLoss()], log_every_n_steps=50, max_steps=3).fit(Task(batches(10, {2: NAN})))


class Reads(TorchDispatchMode):
    """Notes the step of every read of the device's memory."""

    def __init__(self, run: Trainer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.run, self.steps = run, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's
        waits = func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero")
        if waits and self.run.fit_loop.epoch_loop.batch_idx >= 0:
            self.steps.add(self.run.global_step)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_the_host_waits_for_the_device_only_at_the_interval(on_gpu: None, what: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    run = trainer(callbacks=[FiniteLoss(what)], log_every_n_steps=3, gradient_clip_val=1.0)
    to_list = Tensor.tolist

    def read(self: Tensor) -> object:  # on a CPU no operator
        reads.steps.add(run.global_step)
        return to_list(self)

    monkeypatch.setattr(Tensor, "tolist", read)
    with Reads(run) as reads:
        run.fit(Task(batches(8, {4: NAN} if what == "skip" else None), net=network(norm=True)))
    assert reads.steps == {3, 6, 8}


# Checkpoints


class Breaks(Callback):
    """Puts a value into a weight after a step."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: object) -> None:  # noqa: ANN401
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.network[1].weight[0, 0] = self.value


def saving(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:  # noqa: ANN401 - the trainer's
    saver = ModelCheckpoint(folder / "checkpoints", filename="best", save_last=True, every_n_train_steps=2)
    return trainer(callbacks=[*callbacks, saver], enable_checkpointing=True, log_every_n_steps=100, **options)


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, what: Any) -> None:  # noqa: ANN401 - a Literal
    saving(tmp_path, FiniteLoss(what)).fit(Task(batches(2)))
    expected = files(tmp_path)
    folder = tmp_path.parent / f"{tmp_path.name}_broken"
    todo = rf"the last good checkpoint is .*(best|last)\.ckpt; start again with --ckpt_path {folder}/"
    message = r"after step 4 the parameter network\.1\.weight is not finite, so no checkpoint is written; "
    run = saving(folder, FiniteLoss(what), Breaks(4, NAN))
    with pytest.raises(RunError, match=message + todo):
        run.fit(Task(batches(10)))
    written = files(folder)
    assert written.keys() == expected.keys() == {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    weights = [torch.load(place / "checkpoints/last.ckpt", weights_only=True) for place in (tmp_path, folder)]
    assert [weight["global_step"] for weight in weights] == [2, 2]
    for name, value in weights[0]["state_dict"].items():
        assert torch.equal(weights[1]["state_dict"][name], value)


def test_a_bad_loss_that_nobody_has_read_yet_prevents_the_checkpoint(on_gpu: None, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"at step 3 .*the last good checkpoint is .*checkpoints/(best|last)\.ckpt; start again with"
    ):
        saving(tmp_path, FiniteLoss()).fit(Task(batches(10, {2: NAN})))
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_goes_on_counting(on_gpu: None, tmp_path: Path) -> None:
    saving(tmp_path, FiniteLoss("skip")).fit(Task(batches(4, {1: NAN, 3: NAN})))
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["FiniteLoss"]
    assert state == {"skipped_batches": 2, "skipped_in_a_row": 1}
    resumed = FiniteLoss("skip")
    data = batches(4, {1: NAN, 3: NAN})
    run = saving(tmp_path, resumed, max_epochs=2)
    run.fit(Task(data), ckpt_path=tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert run.global_step == 8
    assert resumed.skipped_batches == 4


def test_a_checkpoint_counts_what_nobody_had_read(on_gpu: None, tmp_path: Path) -> None:
    saving(tmp_path, FiniteLoss("skip"), max_steps=5).fit(Task(batches(6, {1: NAN, 3: NAN, 4: NAN})))
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / f"checkpoints/{name}.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 4
        assert checkpoint["callbacks"]["FiniteLoss"] == {"skipped_batches": 2, "skipped_in_a_row": 1}


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_resumed_run_goes_on_counting_steps(tmp_path: Path) -> None:
    saving(tmp_path, FiniteLoss(), accumulate_grad_batches=2).fit(Task(batches(4)))
    run = trainer(callbacks=[FiniteLoss()], max_epochs=2, accumulate_grad_batches=2)
    with pytest.raises(RunError, match=r"^the loss is nan at step 3 \(epoch 2, batch 1: .* good checkpoint is .*/last\.ckpt; "):
        run.fit(Task(batches(4, {0: NAN})), ckpt_path=tmp_path / "checkpoints/last.ckpt", weights_only=True)


def test_without_a_checkpoint_the_message_says_so() -> None:
    with pytest.raises(RunError, match=r"no checkpoint was written before it; start again with a lower --model\.lr"):
        trainer(callbacks=[FiniteLoss()]).fit(Task(batches(2, {0: NAN})))


# float16


def scaled(init_scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale))


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_a_scale_that_overflows_is_no_error(what: Any) -> None:  # noqa: ANN401 - a Literal
    callback, plugin = FiniteLoss(what), scaled(2.0**127)
    task = Task(batches(20), optimizer="unfused")
    trainer(callbacks=[callback], plugins=[plugin]).fit(task)
    assert plugin.scaler is not None and plugin.scaler.get_scale() < 2.0**127  # it did overflow
    assert callback.skipped_batches == 0


def test_a_bad_loss_is_an_error_under_a_scaler() -> None:
    with pytest.raises(RunError, match=r"^the loss is nan at step 2 "):
        trainer(callbacks=[FiniteLoss()], plugins=[scaled(1.0)]).fit(Task(batches(4, {1: NAN}), optimizer="unfused"))


def test_a_bad_loss_is_skipped_under_a_scaler() -> None:
    callback, task = FiniteLoss("skip"), Task(batches(4, {1: NAN}), optimizer="unfused", net=network(norm=True))
    trainer(callbacks=[callback], plugins=[scaled(1.0)]).fit(task)
    assert callback.skipped_batches == 1
    assert all(value.isfinite().all() for value in task.state_dict().values())


# The rest


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_validation_loss_that_is_not_finite_is_said(value: float, capsys: pytest.CaptureFixture[str]) -> None:
    class Validated(Task):
        def validation_step(self, batch: dict[str, Any], index: int) -> None:
            self.log("val/loss", torch.tensor([0.5, value][index]), batch_size=4)

        def val_dataloader(self) -> DataLoader[dict[str, Any]]:
            return DataLoader(batches(2), batch_size=None)  # type: ignore[arg-type]  # a list will do

    trainer(callbacks=[FiniteLoss()]).fit(Validated(batches(2)))
    assert capsys.readouterr().out == f"warning: val/loss is {value} after step 2\n"


def test_only_fused_adam_leaves_out_by_itself() -> None:
    net = network()
    able = {name: can_leave_out_on_device(make(net.parameters())) for name, make in OPTIMIZERS.items()}
    assert able == {"fused": True, "unfused": False, "sgd": False}
    groups: list[dict[str, Any]] = [{"params": [nn.Parameter(torch.ones(1))], "fused": fused} for fused in (True, False)]
    mixed = torch.optim.AdamW(groups, fused=True)
    assert not can_leave_out_on_device(mixed)
    assert not can_leave_out_on_device(torch.optim.SGD(net.parameters(), fused=True))


def test_a_batch_of_any_kind_will_do() -> None:
    class Pairs(Task):
        def training_step(self, batch: Any, index: int) -> Tensor:  # noqa: ANN401
            return super().training_step({"image": batch[0], "label": batch[1]}, index)

    data: Any = [(batch["image"], batch["label"]) for batch in batches(4, {2: NAN})]
    with pytest.raises(RunError, match=r"^the loss is nan at step 3 \(epoch 1, batch 3\); every parameter is finite; "):
        trainer(callbacks=[FiniteLoss()]).fit(Pairs(data))


def test_a_network_that_cannot_be_called_again_is_said() -> None:
    class Twice(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                return super().forward(images)  # type: ignore[no-any-return, no-untyped-call]  # torch's
            raise RuntimeError("not twice")

    with pytest.raises(RunError, match=re.escape("the network could not be looked at (not twice)")):
        trainer(callbacks=[FiniteLoss()]).fit(BadGradients(batches(3), net=Twice(*network())))
