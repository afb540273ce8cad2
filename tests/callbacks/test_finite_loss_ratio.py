"""Trainings that drop nearly every key: queries that lose all of them give zeros, so nothing stops being finite."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dropkey_cli.callbacks.finite_loss import FiniteLoss
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey
from tests.callbacks.nonfinite_runs import trainer

RATIO = 0.99
STEPS = 40
OPTIONS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 12, "depths": (2, 1), "num_heads": (3, 6)},
}


class Learns(LightningModule):
    """A timm model with DropKey at a constant ratio that learns random labels, and what was seen of it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        options = OPTIONS[name]
        self.size = options["img_size"]
        self.network = timm.create_model(name, num_classes=5, **options).train()
        settings = DropKeySettings(ratio=RATIO, schedule="constant")
        self.dropkey_plan = apply_dropkey(self.network, settings, example_inputs=(torch.zeros(2, 3, self.size, self.size),))
        self.losses: list[float] = []
        self.queries_without_keys = 0
        for module in self.network.modules():
            projection = getattr(module, "proj", None)  # takes what the attention gives
            if isinstance(projection, nn.Linear):
                projection.register_forward_pre_hook(self.note)

    def note(self, _module: nn.Module, given: tuple[Tensor]) -> None:
        self.queries_without_keys += int((given[0] == 0).all(-1).sum())

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        loss = F.cross_entropy(self.network(batch["image"]), batch["label"])
        self.losses.append(loss.item())
        return loss

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(4, 3, self.size, self.size, generator=generator)
        batch = {"image": images, "label": torch.tensor([0, 1, 2, 3])}
        return DataLoader([batch] * STEPS, batch_size=None)  # type: ignore[arg-type]  # a list will do

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=3e-3, fused=True)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", OPTIONS, ids=["vit", "swin"])
def test_a_run_at_ratio_99_stays_finite(name: str, precision: Any) -> None:  # noqa: ANN401 - one of Lightning's words
    task = Learns(name)
    before = [parameter.clone() for parameter in task.parameters()]
    # Any loss or gradient that is not finite would be an error
    trainer(callbacks=[FiniteLoss("stop")], precision=precision).fit(task)
    dropped, draws = torch.stack([state.counts for state in task.dropkey_plan.states]).sum(0).tolist()
    assert dropped / draws == pytest.approx(RATIO, abs=0.005)
    assert task.queries_without_keys > 1000
    assert len(task.losses) == STEPS
    assert task.losses[-1] < task.losses[0]  # it learns: the residual path is left
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    assert any(not torch.equal(parameter, old) for parameter, old in zip(task.parameters(), before, strict=True))
