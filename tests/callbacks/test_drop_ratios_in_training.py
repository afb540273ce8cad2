"""The monitor in real trainings, against a count by hand of what the masks that were really used dropped."""

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.callbacks.drop_ratios import DropRatioMonitor
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")

RATIOS = [0.4, 0.2]
SHAPE = (2, 10, 10)  # of the logits of one sample: heads, queries, keys
BATCH = 4
DRAWS = BATCH * 2 * 10 * 10  # of a layer in a batch


class Softmax(nn.Module):
    """Gives its weights: what is 0 in them was dropped."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)


class Sdpa(nn.Module):
    """As `Softmax`, by SDPA: with identity keys and values, queries are logits and outputs are weights."""

    def forward(self, logits: Tensor) -> Tensor:
        eye = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device).expand(*logits.shape[:2], -1, -1)
        return F.scaled_dot_product_attention(logits, eye, eye)


class Task(LightningModule):
    """Two attention layers whose zeros it counts by hand, one list of both layers per training batch."""

    def __init__(self, recompute: bool | None = None, compiled: str | None = None) -> None:
        super().__init__()
        self.project = nn.Linear(SHAPE[-1], SHAPE[-1])
        self.attention = nn.ModuleList([Softmax(), Sdpa()])
        self.recompute: bool | None = None
        settings = DropKeySettings(schedule=RATIOS, include=["*Softmax", "*Sdpa"])
        self.dropkey_plan = apply_dropkey(self, settings, example_inputs=(torch.zeros(2, *SHAPE),))
        self.recompute = recompute  # only now: torch warns where no gradient is wanted
        self.by_hand: list[list[int]] = []
        if compiled is not None:
            for layer in self.attention:
                layer.compile(backend=compiled, fullgraph=True)

    def forward(self, logits: Tensor) -> list[Tensor]:
        logits = self.project(logits)
        if self.recompute is None:
            return [layer(logits) for layer in self.attention]
        return [checkpoint(layer, logits, use_reentrant=self.recompute) for layer in self.attention]

    def training_step(self, batch: Tensor) -> Tensor:
        weights = self(batch)
        self.by_hand.append([int((layer == 0).sum()) for layer in weights])
        return torch.stack([layer.float().square().sum() for layer in weights]).sum()

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert not any((layer == 0).any() for layer in self(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Halving(Callback):
    """Another ratio for every batch, and none at all in every fifth."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        plan: Any = pl_module.dropkey_plan
        plan.set_ratios([0.5 / (1 + trainer.global_step % 3), 0.125 * (trainer.global_step % 4)])
        plan.enabled = trainer.global_step % 5 < 4


def data() -> DataLoader[Tensor]:
    images: Any = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(1))
    return DataLoader(images, batch_size=BATCH)


def fit(
    task: Task,
    folder: Path,
    *,
    callbacks: list[Callback] | None = None,
    resume: str | None = None,
    **options: Any,  # noqa: ANN401 - any of the trainer's
) -> None:
    folder.mkdir(exist_ok=True)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"devices": 1, "max_steps": 6, "log_every_n_steps": 2, "limit_val_batches": 0}
    options = {"logger": False, **quiet, **defaults, **options}
    callbacks = [BatchSeeds(0), DropRatioMonitor(folder), *(callbacks or [])]
    trainer = Trainer(accelerator="cpu", callbacks=callbacks, **options)
    trainer.fit(task, data(), [data(), data()], ckpt_path=resume, weights_only=True)


def rows(folder: Path) -> list[tuple[int, int, int]]:
    """Step, dropped and all draws of every row."""
    lines = (folder / "drop_ratio.csv").read_text().splitlines()[1:]
    return [(int(step), int(dropped), int(draws)) for step, *_, dropped, draws in (line.split(",") for line in lines)]


def counted(task: Task, batches: int, *, per_step: int = 1) -> list[tuple[int, int, int]]:
    """What the rows should be, by the count by hand, where so many batches are logged together."""
    parts = [task.by_hand[start : start + batches] for start in range(0, len(task.by_hand), batches)]
    return [
        ((number + 1) * batches // per_step - 1, sum(batch[layer] for batch in part), len(part) * DRAWS)
        for number, part in enumerate(parts)
        for layer in range(2)
    ]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_counts_are_exact_in_every_precision(tmp_path: Path, precision: str) -> None:
    task = Task()
    fit(task, tmp_path, precision=precision)
    assert rows(tmp_path) == counted(task, 2)


def test_counts_are_exact_with_accumulated_gradients(tmp_path: Path) -> None:
    task = Task()
    fit(task, tmp_path, accumulate_grad_batches=3, max_steps=4)
    assert len(task.by_hand) == 12
    assert rows(tmp_path) == counted(task, 6, per_step=3)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_forwards_do_not_count(tmp_path: Path, use_reentrant: bool) -> None:
    task = Task(recompute=use_reentrant)
    fit(task, tmp_path)
    assert rows(tmp_path) == counted(task, 2)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("recompute", [None, False, True])
def test_counts_are_exact_when_compiled(tmp_path: Path, backend: str, recompute: bool | None) -> None:
    torch._dynamo.reset()
    task = Task(recompute=recompute, compiled=backend)
    fit(task, tmp_path, callbacks=[Halving()])
    assert [dropped for _, dropped, _ in rows(tmp_path)] == [dropped for _, dropped, _ in counted(task, 2)]


def test_validation_with_several_loaders_does_not_count(tmp_path: Path) -> None:
    task = Task()
    fit(task, tmp_path, limit_val_batches=2, val_check_interval=1, num_sanity_val_steps=2)
    assert rows(tmp_path) == counted(task, 2)


def test_every_logger_gets_the_same_numbers(tmp_path: Path) -> None:
    fit(Task(), tmp_path, logger=[CSVLogger(tmp_path / name, "", "") for name in ("first", "second")])
    first, second = ((tmp_path / name / "metrics.csv").read_text() for name in ("first", "second"))
    assert first == second
    assert "drop_ratio_configured/attention.1" in first
    assert first.count("\n") == 4


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*", "ignore:.*dataloader is not resumable.*")
@pytest.mark.parametrize(("saved_at", "stopped_at"), [(3, 3), (3, 4), (5, 9), (6, 6)])
def test_a_run_resumed_between_two_logging_steps_logs_bitwise_the_same(tmp_path: Path, saved_at: int, stopped_at: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(Task(), whole, callbacks=[Halving()], log_every_n_steps=4, max_steps=10)
    saving = ModelCheckpoint(parts, filename="part", every_n_train_steps=saved_at)
    options: dict[str, Any] = {"enable_checkpointing": True, "log_every_n_steps": 4}
    fit(Task(), parts, callbacks=[Halving(), saving], max_steps=stopped_at, **options)
    assert rows(parts)[-1][0] == stopped_at - 1  # the last interval may have been cut short by that
    fit(Task(), parts, callbacks=[Halving()], max_steps=10, log_every_n_steps=4, resume=str(parts / "part.ckpt"))
    assert (parts / "drop_ratio.csv").read_bytes() == (whole / "drop_ratio.csv").read_bytes()


def test_a_schedule_of_ratios_warns_of_nothing_and_is_logged_as_drawn(tmp_path: Path) -> None:
    fit(Task(), tmp_path, callbacks=[Halving()], max_steps=60, log_every_n_steps=3)  # warnings are errors
    lines = [line.split(",") for line in (tmp_path / "drop_ratio.csv").read_text().splitlines()[1:]]
    first = [float(line[2]) for line in lines if line[1] == "attention.0"]
    assert first[0] == pytest.approx((1 / 2 + 1 / 4 + 1 / 6) / 3, abs=2**-16)  # steps 0, 1, 2
    assert first[1] == pytest.approx((1 / 2 + 1 / 6) / 2, abs=2**-16)  # steps 3, 5; 4 dropped nothing


@pytest.mark.slow
def test_processes_are_summed_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    monkeypatch.syspath_prepend(pytestconfig.rootpath)  # where the new processes find this module
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(train_in_two_processes, (tmp_path, port), nprocs=2)  # type: ignore[no-untyped-call]  # torch's
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first != second
    for (step, dropped, draws), (start, layer) in zip(
        rows(tmp_path / "whole"), [(start, layer) for start in (0, 4, 8) for layer in (0, 1)], strict=True
    ):
        batches = [*first[start : start + 4], *second[start : start + 4]]
        assert step == min(start + 4, 10) - 1
        assert dropped == sum(batch[layer] for batch in batches)
        assert draws == len(batches) * DRAWS
    assert (tmp_path / "parts" / "drop_ratio.csv").read_bytes() == (tmp_path / "whole" / "drop_ratio.csv").read_bytes()


def train_in_two_processes(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in group.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "one"}  # so Lightning starts no processes
    logging.getLogger("lightning").setLevel(logging.ERROR)
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "log_every_n_steps": 4}
    task = Task()
    fit(task, folder / "whole", max_steps=10, **options)
    (folder / f"{rank}.json").write_text(json.dumps(task.by_hand))
    saving = ModelCheckpoint(folder / "parts", filename="part", every_n_train_steps=6)
    fit(Task(), folder / "parts", callbacks=[saving], max_steps=7, enable_checkpointing=True, **options)
    fit(Task(), folder / "parts", max_steps=10, resume=str(folder / "parts" / "part.ckpt"), **options)
    dist.barrier()
    os._exit(0)  # now and then gloo's threads abort an orderly end: "terminate called without an active exception"
