"""Learning rates, optimizers and resumption of whole fits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.data.dataset import Batch
from dropkey_cli.errors import InputError
from dropkey_cli.tasks.classification import Classification
from tests.tasks.fits import DEPTH, Rates, random_data, rates, task, trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_rate_warms_up_and_falls_along_a_cosine_to_0() -> None:
    head = rates(task(lr=0.1, warmup_share=0.2), num_steps=20).head
    assert len(head) == 20
    # Linear from 1 % to the full rate in 4 steps
    assert head[:5] == pytest.approx([0.001, 0.02575, 0.0505, 0.07525, 0.1])
    assert max(head) == head[4]
    assert head[4:] == sorted(head[4:], reverse=True)
    assert head[12] == pytest.approx(0.05, rel=0.1)  # half-way
    assert 0 <= head[-1] < 0.02 * 0.1


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
@pytest.mark.parametrize(("num_steps", "warmup_share"), [(1, 0.0), (1, 0.1), (1, 0.9), (2, 0.5), (3, 0.9), (4, 0.0)])
def test_the_shortest_runs_train_at_a_rate_above_0(num_steps: int, warmup_share: float) -> None:
    head = rates(task(lr=0.1, warmup_share=warmup_share), num_steps=num_steps).head
    assert len(head) == num_steps
    assert all(0 < rate <= 0.1 for rate in head)
    if round(num_steps * warmup_share) == 0:
        assert head[0] == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("asked", [{}, {"lr": 0.02, "weight_decay": 0.4}])
def test_a_resumed_run_goes_on_as_if_its_options_had_been_those_from_the_start(asked: dict[str, Any], tmp_path: Path) -> None:
    first: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.3, "layer_decay": 0.5}
    whole = rates(task(**{**first, **asked}), num_steps=4, max_epochs=3)
    short = trainer(max_epochs=1, limit_val_batches=0, log_every_n_steps=1)
    short.fit(task(**first), random_data(16, batch_size=4))
    short.save_checkpoint(tmp_path / "a.ckpt")
    resumed = Rates()
    longer = trainer(callbacks=[resumed], max_epochs=3, limit_val_batches=0, log_every_n_steps=1)
    longer.fit(task(**{**first, **asked}), random_data(16, batch_size=4), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert resumed.steps == whole.steps[4:]
    assert resumed.decayed == whole.decayed
    assert resumed.head[0] > 0


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_checkpoint_with_other_groups_of_weights_is_refused(tmp_path: Path) -> None:
    options = {"limit_val_batches": 0, "log_every_n_steps": 1}
    short = trainer(**options)
    short.fit(task(), random_data())
    short.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=r"has 2 groups of weights, layer_decay 0\.5 gives 10: leave out --model\.layer_decay"):
        trainer(**options, max_epochs=2).fit(
            task(layer_decay=0.5), random_data(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_layer_decay_scales_the_rates_by_powers() -> None:
    peak = rates(task(lr=0.1, layer_decay=0.75, warmup_share=0.25), num_steps=8).steps[2]
    for block in range(DEPTH):
        assert peak[f"blocks.{block}.attn.qkv.weight"] == pytest.approx(0.1 * 0.75 ** (DEPTH - block))
        assert peak[f"blocks.{block}.attn.qkv.bias"] == pytest.approx(0.1 * 0.75 ** (DEPTH - block))
    assert peak["patch_embed.proj.weight"] == pytest.approx(0.1 * 0.75 ** (DEPTH + 1))
    assert peak["head.weight"] == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_without_layer_decay_all_rates_are_equal_and_norms_do_not_decay() -> None:
    recorded = rates(task(lr=0.1, weight_decay=0.3), num_steps=2)
    assert all(len(set(step.values())) == 1 for step in recorded.steps)
    assert recorded.decayed["blocks.0.attn.qkv.weight"] == 0.3
    assert recorded.decayed["blocks.0.attn.qkv.bias"] == recorded.decayed["blocks.0.norm1.weight"] == 0


def test_default_rate_follows_the_images_per_optimizer_step() -> None:
    model = task()
    given: Any = SimpleNamespace(datamodule=SimpleNamespace(batch_size=64), accumulate_grad_batches=2, world_size=4)
    model.__dict__["_trainer"] = given
    assert model.learning_rate == pytest.approx(5e-4 * 64 * 2 * 4 / 256)
    model.lr = 0.25
    assert model.learning_rate == 0.25


@pytest.mark.parametrize("options", [{"max_steps": 0}, {"max_epochs": -1}, {"limit_train_batches": 0}])
def test_runs_without_steps_or_without_end_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"the trainer options give \S+ optimizer steps: give --trainer.max_epochs"):
        trainer(**options).fit(task(), random_data())


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_adamw_runs_as_one_kernel() -> None:
    run = trainer(limit_val_batches=0)
    run.fit(task(), random_data())
    assert [group["fused"] for group in run.optimizers[0].param_groups] == [True] * len(run.optimizers[0].param_groups)


# Schedules in a run


class Told(Classification):
    """A task whose validations have the metrics of a list, by epoch."""

    monitor = "val/told"
    values = (0.3, 0.2, 0.1, 0.4, 0.3, 0.2)

    def validation_step(self, batch: Batch, _batch_index: int) -> torch.Tensor:
        self.log(self.monitor, self.values[self.current_epoch], batch_size=1)
        return torch.empty(0, 10)


IMPATIENT = {"lr": 0.1, "warmup_share": 0.0, "schedule": "plateau", "schedule_args": {"patience": 1, "decay_rate": 0.5}}


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_plateau_falls_after_the_validations_of_a_run() -> None:
    recorded = Rates()
    run = trainer(callbacks=[recorded], max_epochs=6, limit_val_batches=1, log_every_n_steps=1)
    run.fit(task(Told, **IMPATIENT), random_data(8))
    # Two batches an epoch; no new best in the second and third, the fifth and sixth
    assert recorded.head == pytest.approx([0.1] * 6 + [0.05] * 6)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*callbacks used to create.*")
@pytest.mark.parametrize("schedule", ["cosine", "poly", "wsd", "step", "constant", "plateau"])
def test_a_resumed_run_follows_every_schedule_as_if_uninterrupted(schedule: str, tmp_path: Path) -> None:
    options = IMPATIENT if schedule == "plateau" else {"lr": 0.1, "schedule": schedule}
    whole, resumed = Rates(), Rates()
    runs = {"max_epochs": 5, "limit_val_batches": 1, "log_every_n_steps": 1}
    trainer(callbacks=[BatchSeeds(0), whole], **runs).fit(task(Told, **options), random_data(8))
    first = trainer(callbacks=[BatchSeeds(0)], **{**runs, "max_epochs": 2})
    first.fit(task(Told, **options), random_data(8))
    first.save_checkpoint(tmp_path / "a.ckpt")
    second = trainer(callbacks=[BatchSeeds(0), resumed], **runs)
    second.fit(task(Told, **options), random_data(8), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert resumed.steps == whole.steps[4:]


def test_a_plateau_without_validation_is_refused() -> None:
    with pytest.raises(InputError, match=r"^schedule plateau goes by validation, .*give another --model\.schedule$"):
        trainer(limit_val_batches=0).fit(task(schedule="plateau"), random_data())


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
@pytest.mark.parametrize("name", ["sgd", "lamb", "lookahead_adamw", "muon"])
def test_another_optimizer_trains(name: str) -> None:
    run = trainer(limit_val_batches=0)
    model = task(optimizer=name, lr=1e-3)
    run.fit(model, random_data())
    assert run.global_step == 2
    assert model.optimization_lines()[0][1].lower().startswith(f"{name}, lr 0.001")


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*number of training batches.*")
def test_only_what_is_not_frozen_is_trained() -> None:
    model = task(freeze="backbone", lr=0.1)
    run = trainer(limit_val_batches=0)
    run.fit(model, random_data())
    trained = [parameter for group in run.optimizers[0].param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in model.network.head.parameters()}  # type: ignore[union-attr]
    assert "0.00065 M of them trained (frozen: backbone" in dict(model.plan_lines())["model"]
