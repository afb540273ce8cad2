from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from dropkey_cli.callbacks.attention_statistics import AttentionStatistics
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey
from dropkey_cli.report.attention_rows import read_attention


def batches() -> list[dict[str, Any]]:
    """Three images, two unreadable ones and one for padding, which must not count."""
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    paths, errors = ["a", "b", "c", "d", "", "e"], ["", "broken", "", "", "", "broken"]
    return [{"image": images[part], "path": paths[part], "error": errors[part]} for part in (slice(0, 4), slice(4, 6))]


class Images(LightningDataModule):
    preprocessing = SimpleNamespace(image_size=32, channels=3)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]  # a list will do

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        first, last = batches()
        return DataLoader([last, first, first, last], batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


class Task(LightningModule):
    def __init__(self, network: nn.Module, settings: DropKeySettings | None) -> None:
        super().__init__()
        self.network = network
        images = (torch.empty(2, 3, 32, 32, device="meta"),)
        self.dropkey_plan = None if settings is None else apply_dropkey(network, settings, example_inputs=images)

    def configure_model(self) -> None:
        """As our tasks have one."""

    def training_step(self, batch: dict[str, Any], _batch_index: int) -> Tensor:
        return self.network(batch["image"]).sigmoid().mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: dict[str, Any], _batch_index: int) -> None:
        self.network(batch["image"])

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def network(name: str = "test_vit", **options: Any) -> nn.Module:  # noqa: ANN401 - timm's
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=32, num_classes=3, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # attention that is not nearly flat
    return model


def trainer(*callbacks: AttentionStatistics, **options: Any) -> Trainer:  # noqa: ANN401 - the trainer's
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {**quiet, "num_sanity_val_steps": 0, **options}
    return Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **settings)


def weights_by_timm(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Each layer's attention weights (B, H, N, S), as timm gives them to its own dropout of weights."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if hasattr(module, "attn_drop") and isinstance(module.attn_drop, nn.Module):
            module.fused_attn = False
            module.attn_drop.register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0]}))
    with torch.no_grad():
        model.eval()(images)
    return found


def expected(model: nn.Module) -> Iterator[tuple[str, int, float, float, float, int]]:
    images = torch.cat([batch["image"] for batch in batches()])[[0, 2, 3]]
    for layer, weights in weights_by_timm(model, images).items():
        for head in range(weights.shape[1]):
            rows = weights[:, head].double().flatten(0, 1)
            entropy = -(rows * rows.log()).sum(-1).mean()
            normalized = entropy / torch.tensor(rows.shape[1]).log()
            yield layer, head, float(entropy), float(normalized), float(rows.amax(-1).mean()), len(rows)


@pytest.mark.parametrize("settings", [None, DropKeySettings(ratio=0.5)], ids=["none", "dropkey"])
def test_every_image_counts_once_as_timm_attends(tmp_path: Path, settings: DropKeySettings | None) -> None:
    model = network(attn_drop_rate=0.3)
    task, run = Task(model, settings), trainer(AttentionStatistics(tmp_path))
    run.test(task, Images(), verbose=False)
    rows = read_attention(tmp_path / "attention.csv")
    found = [(row.layer, row.head, row.entropy, row.normalized_entropy, row.top_key, row.rows) for row in rows]
    wanted = list(expected(network()))
    assert [row[:2] + row[5:] for row in found] == [row[:2] + row[5:] for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one[2:5] == pytest.approx(other[2:5], rel=1e-5)
    assert {row.mode for row in rows} == {"inference"}
    assert float(run.callback_metrics["test/attention_entropy"]) == pytest.approx(_mean(row.entropy for row in rows))
    assert float(run.callback_metrics["test/attention_top_key"]) == pytest.approx(_mean(row.top_key for row in rows))
    assert (tmp_path / "attention.png").is_file()
    assert all(hasattr(module, "dropkey") == (settings is not None) for module in model.modules() if hasattr(module, "qkv"))


def _mean(values: Iterator[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def test_windows_of_images_that_do_not_count_are_left_out(tmp_path: Path) -> None:
    model = network("swin_tiny_patch4_window7_224", depths=(2, 1), num_heads=(2, 2), embed_dim=16, window_size=4)
    run = trainer(AttentionStatistics(tmp_path))
    run.test(Task(model, None), Images(), verbose=False)
    rows = read_attention(tmp_path / "attention.csv")
    assert {row.layer: row.rows for row in rows} == dict.fromkeys(
        ["layers.0.blocks.0.attn", "layers.0.blocks.1.attn"], 3 * 4 * 16
    ) | {"layers.1.blocks.0.attn": 3 * 16}
    copies = network("swin_tiny_patch4_window7_224", depths=(2, 1), num_heads=(2, 2), embed_dim=16, window_size=4)
    images = torch.cat([batch["image"] for batch in batches()])[[0, 2, 3]]
    for layer, weights in weights_by_timm(copies, images).items():
        top = [row.top_key for row in rows if row.layer == layer]
        assert top == pytest.approx(weights.amax(-1).mean((0, 2)).tolist(), rel=1e-5)
    assert all(0 < row.normalized_entropy <= 1 for row in rows)


def test_an_earlier_file_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        trainer(AttentionStatistics(tmp_path)).validate(Task(network(), None), Images(), verbose=False)
    assert (tmp_path / "attention.1.csv").read_bytes() == (tmp_path / "attention.csv").read_bytes()


def watch_logger(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, float]]]:
    """What is logged of attention in training, with its step."""
    logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(_self: DummyLogger, metrics: dict[str, float], step: int) -> None:
        found = {name: value for name, value in metrics.items() if name.startswith("train/attention")}
        logged.extend([(step, found)] if found else [])

    monkeypatch.setattr(DummyLogger, "log_metrics", log_metrics)
    return logged


def test_the_training_pass_is_measured_at_logging_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = watch_logger(monkeypatch)
    after: list[list[Tensor]] = []
    for callbacks in ([AttentionStatistics(None)], []):
        torch.manual_seed(1)
        task = Task(network(), DropKeySettings(ratio=0.5, schedule="constant"))
        run = trainer(*callbacks, logger=DummyLogger(), max_epochs=2, log_every_n_steps=2, limit_val_batches=0)
        torch.manual_seed(1)
        run.fit(task, Images())
        after.append([parameter.detach() for parameter in task.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*after, strict=True))
    assert [step for step, _ in logged] == [1, 5]  # the batches of steps 3 and 7 have no image that counts
    names = [name for name in logged[0][1] if name.startswith("train/attention_entropy/")]
    assert names == [f"train/attention_entropy/blocks.{block}.attn" for block in range(6)]
    assert logged[0][1]["train/attention_entropy"] == pytest.approx(_mean(logged[0][1][name] for name in names))


def test_a_step_of_several_batches_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logged, model = watch_logger(monkeypatch), network()
    counting = AttentionStatistics(None)
    options = {"limit_val_batches": 0, "max_epochs": 1, "log_every_n_steps": 1, "accumulate_grad_batches": 2}
    task = Task(model, DropKeySettings(ratio=0.5, schedule="constant"))
    task.dropkey_plan.enabled = False  # type: ignore[union-attr]  # it has one; unmasked, so that timm says what is expected
    monkeypatch.setattr(Task, "configure_optimizers", lambda self: torch.optim.SGD(self.parameters(), lr=0.0))
    trainer(counting, logger=DummyLogger(), **options).fit(task, Images())
    assert [step for step, _ in logged] == [0, 1]  # one batch of each has no image that counts
    wanted = _mean(entropy for _, _, entropy, *_ in expected(network()))
    assert [found["train/attention_entropy"] for _, found in logged] == pytest.approx([wanted, wanted], rel=1e-5)


def test_networks_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(InputError, match="--attention: ResNet has no attention over keys; leave it out"):
        run = trainer(AttentionStatistics(None), max_epochs=1)
        run.fit(Task(timm.create_model("test_resnet", num_classes=3), None), Images())


def test_a_sharded_network_without_dropkey_is_refused() -> None:
    model = network()
    model.__class__ = type("FSDPVisionTransformer", (FSDPModule, type(model)), {})  # what fully_shard makes of it
    with pytest.raises(InputError, match=r"a sharded network without DropKey cannot be measured; give --trainer\.strategy ddp"):
        AttentionStatistics(None).on_fit_start(trainer(), Task(model, None))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_network_of_any_precision_is_measured(tmp_path: Path, precision: str) -> None:
    model = network()
    trainer(AttentionStatistics(tmp_path), precision=precision).test(Task(model, None), Images(), verbose=False)
    rows = read_attention(tmp_path / "attention.csv")
    precise = precision == "64-true"
    for row, (_, _, entropy, normalized, top, _) in zip(rows, expected(network()), strict=True):
        assert (row.entropy, row.top_key) == pytest.approx((entropy, top), rel=1e-5 if precise else 0.05)
        assert row.normalized_entropy / row.entropy == pytest.approx(normalized / entropy, rel=1e-6)


def test_rows_of_no_batch_write_nothing(tmp_path: Path) -> None:
    run = trainer(AttentionStatistics(tmp_path / "new"), limit_test_batches=0)
    run.test(Task(network(), None), Images(), verbose=False)
    assert not (tmp_path / "new").exists()
