import pytest

from dropkey_cli.cli import TRAINER_COMMANDS
from dropkey_cli.commands.early_errors import known_options
from dropkey_cli.commands.nearest import OTHER_NAMES, near_options

KNOWN = sorted(known_options("fit", []))


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("lr", "--model.lr"),
        ("batch-size", "--data.batch_size"),
        ("max_epochs", "--trainer.max_epochs"),
        ("epochs", "--trainer.max_epochs"),
        ("trainer.epochs", "--trainer.max_epochs"),
        ("model.batch_size", "--data.batch_size"),
        ("data.lr", "--model.lr"),
        ("modle.lr", "--model.lr"),
        ("model.ratio", "--model.dropkey.ratio"),
        ("gpus", "--trainer.devices"),
        ("devics", "--trainer.devices"),
        ("pretraind", "--model.pretrained"),
        ("nmae", "--name"),
        ("resum", "--resume"),
        ("val-fraction", "--data.val_fraction"),
    ],
)
def test_the_nearest_option_comes_first(given: str, near: str) -> None:
    assert near_options(given, KNOWN).startswith(f"; did you mean '{near}'")


def test_nothing_is_guessed() -> None:
    assert near_options("xyzzy", KNOWN) == ""
    assert near_options("epochs", ["name"]) == ""


def test_at_most_three_are_named() -> None:
    assert near_options("limit_batches", KNOWN).count("--") == 3


def test_an_option_is_not_its_own_neighbour() -> None:
    assert "'--model.lr'" not in near_options("model.lr", KNOWN)


def test_other_names_lead_to_options_that_exist() -> None:
    known = {name for command in TRAINER_COMMANDS for name in known_options(command, [])}
    assert set(OTHER_NAMES.values()) <= known
    assert not set(OTHER_NAMES) & (known - {"model"})
