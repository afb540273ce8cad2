import inspect

import pytest
import yaml
from jsonargparse import ArgumentParser
from jsonargparse._util import import_object
from lightning import Trainer

from dropkey_cli.cli import TRAINER_COMMANDS
from dropkey_cli.commands.early_errors import known_options
from dropkey_cli.commands.option_list import choices, class_options, sections, tool_options, value_word
from dropkey_cli.commands.own_options import OWN_OPTIONS
from dropkey_cli.method.settings import DropKeySettings


@pytest.mark.parametrize(
    ("part", "class_path"),
    [
        ("model", "dropkey_cli.tasks.classification.Classification"),
        ("data", "dropkey_cli.data.image_folder.ImageFolder"),
        ("data", "dropkey_cli.data.digits.Digits"),
    ],
)
def test_options_of_a_class_are_what_jsonargparse_says_of_it(part: str, class_path: str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(import_object(class_path), part)
    nested = ArgumentParser()
    if part == "model":  # jsonargparse hides the fields of an optional group
        nested.add_class_arguments(DropKeySettings, "model.dropkey")
    found = [*parser._actions, *nested._actions[1:]]
    actions = {action.dest: action for action in found if not action.dest.endswith(("help", part))}
    options = {option.name: option for option in class_options(part, "fit", [f"--{part}", class_path])}
    assert set(options) == set(actions)
    for name in set(options) - {"model.dropkey"}:
        assert options[name].help == " ".join((actions[name].help or "").split())
        shown = yaml.safe_load(options[name].default or "null")
        default = actions[name].default
        assert shown == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_all_options_that_are_known_are_listed(command: str) -> None:
    listed = {option.name for options in sections(command, []).values() for option in options}
    known = known_options(command, []) - {"model", "data", "trainer"}
    assert listed <= known
    unlisted = known - listed
    # Options of fit are taken everywhere, so that its config.yaml is valid, and two are Trainer.predict's and validate's own
    of_fit = {option.name for option in OWN_OPTIONS if "fit" in option.commands}
    assert unlisted <= (set() if command == "fit" else of_fit | {"return_predictions", "verbose"})


def test_trainer_options_have_our_defaults_and_short_texts() -> None:
    of_fit = {option.name: option for option in sections("fit", [])["trainer"]}
    assert of_fit["trainer.max_epochs"].default == "20"
    assert of_fit["trainer.log_every_n_steps"].default == "10"
    assert of_fit["trainer.devices"].default == "auto"
    of_predict = {option.name: option for option in sections("predict", [])["trainer"]}
    assert of_predict["trainer.devices"].default == "1"
    assert set(of_fit) == {f"trainer.{name}" for name in inspect.signature(Trainer).parameters}
    for option in of_fit.values():
        assert option.help
        assert "`" not in option.help and "Default:" not in option.help
    assert of_fit["trainer.num_nodes"].help == "Number of GPU nodes for distributed training."


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("str | None", "TEXT"),
        ("Optional[dict[str, Any]]", "MAPPING"),
        ("Union[int, float, None]", "INTEGER|NUMBER"),
        ("tuple[float, float]", "LIST"),
        ("Literal['a', 'b'] | list[float]", "a|b|LIST"),
        ("typing.Literal['stop', 'skip']", "stop|skip"),
        ("jsonargparse.typing.PositiveInt | None", "INTEGER"),
        ("bool", "true|false"),
        ("my.Thing", "VALUE"),
    ],
)
def test_types_in_words(kind: str, word: str) -> None:
    assert value_word(kind) == word


def test_choices_are_what_an_annotation_names() -> None:
    assert choices("Literal['a', 'b'] | list[float]") == ("a", "b")
    assert choices("bool") == ("true", "false")
    assert choices("int | None") == ()


def test_options_of_tools() -> None:
    of_inspect = {option.name: option for option in tool_options("inspect")}
    assert of_inspect["dropkey.ratio"].default == "0.3"
    assert of_inspect["image_size"].value == "INTEGER"
    benchmark = {option.name: option for option in tool_options("benchmark")}
    assert benchmark["fit"].value == ""
    assert benchmark["precision"].choices == ("32-true", "bf16-mixed", "16-mixed")
