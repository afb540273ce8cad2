"""How the learning rate changes from step to step: timm's schedules in shares of the run, and one that follows a metric."""

from typing import Any

from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn, zeros
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dropkey_cli.errors import InputError, did_you_mean
from dropkey_cli.tasks.options import check_option

SCHEDULE_ARGS: dict[str, dict[str, Any]] = {
    "cosine": {"min_lr": 0.0},
    "poly": {"min_lr": 0.0, "power": 1.0},
    "wsd": {"min_lr": 0.0, "decay_share": 0.2},
    "step": {"decay_rate": 0.1, "milestones": [0.5, 0.75]},
    "plateau": {"min_lr": 0.0, "decay_rate": 0.1, "patience": 5},
    "constant": {},
}
"""What each schedule takes, with its defaults; milestones and decay_share are shares of all steps."""


def schedule_arguments(schedule: str, given: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments of a schedule, with its defaults.

    Args:
        schedule: Its name.
        given: What was asked for.

    Raises:
        InputError: If it does not take one of them, or not this value.
    """
    known = SCHEDULE_ARGS[schedule]
    for name in given or {}:
        if name not in known:
            raise InputError(
                f"schedule_args has {name!r}, which {schedule} does not take; expected {' or '.join(known) or 'none'}; give "
                f"--model.schedule_args{did_you_mean(name, known)}"
            )
    arguments = {**known, **(given or {})}
    for name, value in arguments.items():
        accepted, expected = _accepts(name, value)
        check_option(f"schedule_args.{name}", value, accepted, expected)
    return arguments


def _accepts(name: str, value: Any) -> tuple[bool, str]:  # noqa: ANN401 - anything that a config can hold
    """Whether an argument can have a value, and what would do."""
    if name == "milestones":
        numbers = isinstance(value, list) and all(_is_number(share) and 0 < share < 1 for share in value)
        return numbers and value == sorted(value), "a rising list of shares of the run between 0 and 1, such as [0.5, 0.75]"
    if name == "patience":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0, "a whole number from 0"
    if name == "decay_share":
        return _is_number(value) and 0 < value <= 1, "a share above 0, at most 1"
    if name == "decay_rate":
        return _is_number(value) and 0 < value < 1, "a factor between 0 and 1"
    return _is_number(value) and value >= 0, "a number from 0"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def create_schedule(
    optimizer: Optimizer,
    schedule: str = "cosine",
    *,
    lr: float,
    steps: int,
    warmup_share: float,
    arguments: dict[str, Any] | None = None,
) -> Scheduler:
    """A linear warm-up from a hundredth of ``lr``, then a schedule, step by step.

    Args:
        optimizer: Whose learning rates follow it.
        schedule: cosine, poly or wsd, which end at ``min_lr``; step; plateau; constant.
        lr: Learning rate after warm-up.
        steps: All optimizer steps of the run.
        warmup_share: Share of them in which the rate rises, in [0, 1).
        arguments: As `schedule_arguments` gives them; by default the defaults.
    """
    asked = arguments if arguments is not None else SCHEDULE_ARGS[schedule]
    if asked.get("min_lr", 0.0) > lr:
        raise InputError(f"schedule_args.min_lr is {asked['min_lr']:g}, above the learning rate {lr:g}: give a smaller one")
    warmup = round(steps * warmup_share)
    rest = max(1, steps - warmup)
    if schedule == "plateau":
        return PlateauSchedule(optimizer, warmup_steps=warmup, warmup_lr=lr / 100, **asked)
    further: dict[str, Any] = {}
    if schedule == "step":
        # timm's milestone m acts from m - 1 on, and counts from the end of the warm-up
        further = {"decay_milestones": [round(share * steps) - warmup + 1 for share in asked["milestones"]]}
    elif schedule == "wsd":
        further = {"decay_epochs": min(rest, max(1, round(asked["decay_share"] * steps)))}
    names = {"min_lr": "min_lr", "decay_rate": "decay_rate", "power": "decay_rate"}  # timm's name of a power
    further |= {names[name]: value for name, value in asked.items() if name in names}
    scheduler: Scheduler
    scheduler, _ = create_scheduler_v2(
        optimizer,
        "multistep" if schedule == "step" else schedule,
        num_epochs=rest,
        warmup_epochs=warmup,
        warmup_lr=lr / 100,
        warmup_prefix=True,
        step_on_epochs=False,
        updates_per_epoch=1,  # so that timm's epochs are steps
        **further,
    )
    return scheduler


class PlateauSchedule(Scheduler):
    """Falls by a factor when a metric, whose highest value is best, has not improved for some validations.

    torch's ReduceLROnPlateau decides; here the factor it has come to acts beside warm-up and layer-wise learning rates, and
    its state can be saved. timm's own is to be removed.

    Args:
        optimizer: Whose learning rates follow it.
        warmup_steps: Steps in which the rate rises; validations within them do not count.
        warmup_lr: Learning rate of the first of them.
        decay_rate: Factor of each fall.
        patience: Validations in a row without improvement after which the next one lets it fall.
        min_lr: It falls no lower.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int,
        warmup_lr: float,
        decay_rate: float,
        patience: int,
        min_lr: float,
    ) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self.warmup_steps = warmup_steps
        self.warmup_lr = warmup_lr
        self.min_lr = min_lr
        self._factor = SGD([nn.Parameter(zeros(()))], lr=1.0)  # its learning rate is the factor
        self._watch = ReduceLROnPlateau(self._factor, mode="max", factor=decay_rate, patience=patience)
        self.step_update(0)

    def observe(self, metric: float, step: int) -> None:
        """Take note of a validation.

        Args:
            metric: Its value of the metric.
            step: Optimizer steps made so far.
        """
        if step >= self.warmup_steps:
            self._watch.step(metric)
            self.step_update(step)

    def _get_lr(self, t: int) -> list[float]:
        if t < self.warmup_steps:
            return [self.warmup_lr + t * (lr - self.warmup_lr) / self.warmup_steps for lr in self.base_values]
        factor = self._factor.param_groups[0]["lr"]
        return [max(lr * factor, self.min_lr) for lr in self.base_values]

    def state_dict(self) -> dict[str, Any]:
        """What it has seen, as plain data."""
        seen = {name: getattr(self._watch, name) for name in ("best", "num_bad_epochs", "last_epoch")}
        return {"plateau": {**seen, "factor": self._factor.param_groups[0]["lr"]}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what was seen; another schedule's state says nothing of it."""
        seen = dict(state_dict.get("plateau", {}))
        self._factor.param_groups[0]["lr"] = seen.pop("factor", 1.0)
        vars(self._watch).update(seen)
