import math
from typing import Any

import pytest
import timm
import torch
from timm.optim._param_groups import param_groups_layer_decay
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dropkey_cli.errors import InputError
from dropkey_cli.tasks.schedules import SCHEDULE_ARGS, PlateauSchedule, create_schedule, schedule_arguments

STEPS, WARMUP = 40, 4
"""Of the runs below: warm-up takes a tenth."""


def sgd(lr: float = 0.1, groups: int = 1) -> torch.optim.Optimizer:
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(()))], "lr_scale": 0.5**number} for number in range(groups)]
    return torch.optim.SGD(parameters, lr=lr)


def rates(schedule: str, *, steps: int = STEPS, warmup_share: float = 0.1, **arguments: Any) -> list[float]:  # noqa: ANN401
    optimizer = sgd()
    asked = schedule_arguments(schedule, arguments)
    scheduler = create_schedule(optimizer, schedule, lr=0.1, steps=steps, warmup_share=warmup_share, arguments=asked)
    seen = []
    for step in range(steps + 1):
        scheduler.step_update(step)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def timms(schedule: str, **options: Any) -> list[float]:  # noqa: ANN401 - create_scheduler_v2's
    """timm's values at each update, with epochs of 4 updates."""
    optimizer = sgd()
    scheduler: Any = create_scheduler_v2(
        optimizer, schedule, warmup_lr=0.001, step_on_epochs=False, updates_per_epoch=4, **options
    )[0]
    seen = []
    for step in range(STEPS + 1):
        scheduler.step_update(step)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


IN_EPOCHS = {"num_epochs": 9, "warmup_epochs": 1, "warmup_prefix": True}


@pytest.mark.parametrize(
    ("schedule", "arguments", "theirs"),
    [
        ("cosine", {}, {}),
        ("cosine", {"min_lr": 0.01}, {"min_lr": 0.01}),
        ("poly", {"power": 2, "min_lr": 0.01}, {"decay_rate": 2, "min_lr": 0.01}),
        ("poly", {}, {"decay_rate": 1}),
        ("wsd", {"decay_share": 0.3, "min_lr": 0.01}, {"decay_epochs": 3, "min_lr": 0.01}),
        ("wsd", {"decay_share": 1.0}, {"decay_epochs": 9}),
        ("constant", {}, {}),
    ],
)
def test_each_step_has_timms_rate(schedule: str, arguments: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert rates(schedule, **arguments) == pytest.approx(timms(schedule, **IN_EPOCHS, **theirs), abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULE_ARGS)
@pytest.mark.parametrize("warmup_share", [0.0, 0.25, 0.9])
def test_every_schedule_warms_up_from_a_hundredth(schedule: str, warmup_share: float) -> None:
    warmup = round(STEPS * warmup_share)
    seen = rates(schedule, warmup_share=warmup_share)
    assert seen[:warmup] == pytest.approx([0.001 + (0.1 - 0.001) * step / warmup for step in range(warmup)])
    if schedule != "step":  # whose milestone may lie in it
        assert seen[warmup] == pytest.approx(0.1)


def test_warm_up_then_a_cosine_to_0() -> None:
    warmup = [0.001 + (0.1 - 0.001) * step / 5 for step in range(5)]
    cosine = [0.05 * (1 + math.cos(math.pi * step / 15)) for step in range(16)]
    assert rates("cosine", steps=20, warmup_share=0.25) == pytest.approx([*warmup, *cosine], abs=1e-9)


def test_milestones_are_shares_of_the_whole_run() -> None:
    seen = rates("step", milestones=[0.5, 0.75], decay_rate=0.1)
    assert seen[WARMUP:] == pytest.approx([0.1] * 16 + [0.01] * 10 + [0.001] * 11)  # from steps 20 and 30 on


@pytest.mark.parametrize("schedule", SCHEDULE_ARGS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_rates(schedule: str, steps: int) -> None:
    assert all(0 < rate <= 0.1 for rate in rates(schedule, steps=steps)[:steps])


@pytest.mark.parametrize("schedule", SCHEDULE_ARGS)
def test_layers_keep_their_share_of_the_rate(schedule: str) -> None:
    optimizer = sgd(groups=3)
    scheduler = create_schedule(optimizer, schedule, lr=0.1, steps=STEPS, warmup_share=0.1)
    for step in (0, 2, 10, 35):
        scheduler.step_update(step)
        first, *others = (group["lr"] for group in optimizer.param_groups)
        assert others == pytest.approx([first / 2, first / 4])


# Plateau

METRICS = [0.1, 0.3, 0.3, 0.2, 0.25, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]


def plateau(optimizer: torch.optim.Optimizer, **changes: Any) -> PlateauSchedule:  # noqa: ANN401 - its options
    options = {"warmup_steps": 0, "warmup_lr": 0.001, "decay_rate": 0.5, "patience": 1, "min_lr": 0.0, **changes}
    return PlateauSchedule(optimizer, **options)


def test_a_plateau_falls_as_torchs() -> None:
    mine, theirs = sgd(), sgd()
    schedule = plateau(mine)
    expected = ReduceLROnPlateau(theirs, mode="max", factor=0.5, patience=1)
    seen = []
    for epoch, metric in enumerate(METRICS):
        schedule.step_update(4 * epoch + 4)
        schedule.observe(metric, 4 * epoch + 4)
        expected.step(metric)
        seen.append(mine.param_groups[0]["lr"])
        assert seen[-1] == pytest.approx(theirs.param_groups[0]["lr"])
    assert min(seen) == pytest.approx(0.1 / 8)


def test_validations_during_warm_up_do_not_count() -> None:
    optimizer = sgd()
    schedule = plateau(optimizer, warmup_steps=8)
    for _ in range(5):
        schedule.observe(0.1, 7)
    schedule.step_update(8)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_the_validation_right_after_warm_up_counts() -> None:
    optimizer = sgd()
    schedule = plateau(optimizer, warmup_steps=8, patience=0)
    schedule.observe(0.2, 8)
    schedule.observe(0.1, 9)  # worse
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_plateau_falls_no_lower_than_asked() -> None:
    optimizer = sgd()
    schedule = plateau(optimizer, min_lr=0.03)
    for step in range(1, 20):
        schedule.observe(0.1, step)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.03)


@pytest.mark.parametrize("at", range(len(METRICS)))
def test_a_plateau_goes_on_from_its_state(at: int) -> None:
    whole, parts, again = sgd(), sgd(), sgd()
    expected, first, second = plateau(whole), plateau(parts), plateau(again)
    for metric in METRICS[:at]:
        expected.observe(metric, 1)
        first.observe(metric, 1)
    second.load_state_dict(first.state_dict())
    for metric in METRICS[at:]:
        expected.observe(metric, 1)
        second.observe(metric, 1)
        assert again.param_groups[0]["lr"] == whole.param_groups[0]["lr"]
    assert second.state_dict() == expected.state_dict()


def test_the_state_of_another_schedule_says_nothing_to_a_plateau() -> None:
    other = create_schedule(sgd(), lr=0.1, steps=4, warmup_share=0.0)
    schedule = plateau(sgd())
    schedule.load_state_dict(other.state_dict())
    assert schedule.state_dict() == plateau(sgd()).state_dict()


# Arguments


@pytest.mark.parametrize("schedule", SCHEDULE_ARGS)
def test_defaults_are_filled_in(schedule: str) -> None:
    assert schedule_arguments(schedule, None) == SCHEDULE_ARGS[schedule]
    for name, value in SCHEDULE_ARGS[schedule].items():
        assert schedule_arguments(schedule, {name: value}) == SCHEDULE_ARGS[schedule]


@pytest.mark.parametrize(
    ("schedule", "given", "said"),
    [
        ("cosine", {"minlr": 0.1}, r"^schedule_args has 'minlr', which cosine does not take; expected min_lr; .* 'min_lr'\?$"),
        ("constant", {"min_lr": 0.1}, "^schedule_args has 'min_lr', which constant does not take; expected none; give"),
        ("cosine", {"min_lr": -1}, r"^schedule_args\.min_lr is -1; expected a number from 0"),
        ("poly", {"power": "x"}, r"^schedule_args\.power is 'x'; expected a number from 0"),
        ("step", {"milestones": [0.7, 0.5]}, r"^schedule_args\.milestones is \[0\.7, 0\.5\]; expected a rising list"),
        ("step", {"milestones": [30, 60]}, r"^schedule_args\.milestones is \[30, 60\]; expected a rising list of shares"),
        ("step", {"milestones": 0.5}, r"^schedule_args\.milestones is 0\.5; expected a rising list"),
        ("step", {"decay_rate": 1.0}, r"^schedule_args\.decay_rate is 1\.0; expected a factor between 0 and 1"),
        ("wsd", {"decay_share": 0.0}, r"^schedule_args\.decay_share is 0\.0; expected a share above 0, at most 1"),
        ("plateau", {"patience": 1.5}, r"^schedule_args\.patience is 1\.5; expected a whole number from 0"),
        ("plateau", {"patience": True}, r"^schedule_args\.patience is True; expected a whole number from 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(schedule: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        schedule_arguments(schedule, given)


def test_a_lowest_rate_above_the_rate_is_refused() -> None:
    with pytest.raises(InputError, match=r"^schedule_args\.min_lr is 0\.2, above the learning rate 0\.1: give a smaller one$"):
        create_schedule(sgd(), lr=0.1, steps=4, warmup_share=0.0, arguments={"min_lr": 0.2})


def test_a_network_with_layer_decay_follows_a_schedule() -> None:
    groups = param_groups_layer_decay(timm.create_model("test_vit"), layer_decay=0.5)
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    create_schedule(optimizer, lr=0.1, steps=8, warmup_share=0.0).step_update(4)
    assert {round(group["lr"] / group["lr_scale"], 9) for group in optimizer.param_groups} == {0.05}
