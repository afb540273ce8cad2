import math
from typing import Any

import pytest
from jsonargparse import Namespace

from dropkey_cli.commands.config_values import check_trainer_options, check_values
from dropkey_cli.errors import InputError


def config(**changes: object) -> Namespace:
    model: dict[str, Any] = {"class_path": "dropkey_cli.tasks.classification.Classification", "init_args": Namespace(lr=None)}  # type: ignore[no-untyped-call]
    data: dict[str, Any] = {"class_path": "dropkey_cli.data.image_folder.ImageFolder", "init_args": Namespace(mean=None)}  # type: ignore[no-untyped-call]
    parts = {"trainer": Namespace(max_epochs=3), "model": Namespace(**model), "data": Namespace(**data), "num_threads": None}  # type: ignore[no-untyped-call]
    whole = Namespace(**parts)  # type: ignore[no-untyped-call]
    for name, value in changes.items():
        whole[name.replace("__", ".")] = value
    return whole


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__init_args__lr": 0.1, "data__init_args__mean": [0.5, 0.5, 0.5], "trainer__max_epochs": -1},
        {"trainer__max_epochs": 2**62, "num_threads": 8},
        {"trainer__callbacks": [Namespace(threshold=math.inf)]},  # type: ignore[no-untyped-call]
    ],
    ids=str,
)
def test_values_that_work_pass(changes: dict[str, object]) -> None:
    check_values(config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "^model is None: give its options"),
        ({"model__init_args__lr": math.nan}, "^model.lr is nan; expected a finite number"),
        ({"model__init_args__lr": 10**30}, r"^model.lr is 10{30}; expected a number of at most 18 digits"),
        ({"data__init_args__mean": [0.5, 0.5, math.inf]}, "^data.mean is inf; expected a finite number"),
        ({"model__init_args__model_args": {"depth": 10**400}}, "^model.model_args is 10+; expected a number of at most"),
        ({"trainer__max_epochs": 2**63}, "^trainer.max_epochs is 9223372036854775808; expected"),
        ({"model__init_args__pretrained": None}, "^model.pretrained is null; expected true or false"),
        ({"data__init_args__hflip": None}, "^data.hflip is null; expected a number"),
        ({"num_threads": 4_000_000_000}, "^num_threads is 4000000000; expected at most 4096"),
    ],
    ids=str,
)
def test_values_that_nothing_works_with_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_values(config(**changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches is 0; expected 1 or more"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val is -1.0; expected 0 or more"),
        ({"limit_train_batches": -1}, "limit_train_batches is -1; expected 0 or more"),
        ({"check_val_every_n_epoch": 0}, "check_val_every_n_epoch is 0; expected 1 or more"),
        ({"val_check_interval": 0.0}, "val_check_interval is 0.0; expected"),
        ({"devices": "10" * 10}, "devices is 1010.*; expected at most 4096"),
    ],
)
def test_what_lightning_takes_in_silence_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_trainer_options(options)


def test_usual_trainer_options_pass() -> None:
    usual = {"gradient_clip_val": None, "devices": "auto", "val_check_interval": 0.5, "limit_val_batches": 0, "num_nodes": 2}
    check_trainer_options({**usual, "accumulate_grad_batches": 4, "num_sanity_val_steps": -1, "check_val_every_n_epoch": None})
