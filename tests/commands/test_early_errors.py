import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dropkey_cli.cli import TRAINER_COMMANDS
from dropkey_cli.commands.early_errors import check_early, known_options
from dropkey_cli.commands.run import RunCLI, run
from dropkey_cli.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def write(content: str) -> tuple[str, str]:
    Path("c.yaml").write_text(content)
    return "--config", "c.yaml"


class Seen(Exception):
    """Ends a run whose parser has been looked at."""


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_known_options_are_those_of_the_parser(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[Any] = []

    def look(self: RunCLI, parser: object, args: object) -> None:
        parsers.append(self._subcommand_parsers[command])
        raise Seen

    monkeypatch.setattr(RunCLI, "parse_arguments", look)
    with pytest.raises(Seen):
        run(command, [])
    names = {action.dest for action in parsers[0]._actions if not action.dest.endswith("help")}
    known = known_options(command, [])
    known -= {"resume"}  # it is spelled out before anything is parsed
    assert {name for name in known if not name.startswith(("model.", "data."))} == names


WRONG = [
    ["--nmae", "x"],
    ["--modle.lr=1"],
    ["--trainer.max_epoch", "3"],
    ["--model.lrr", "1"],
    ["--model.dropkey.ratoi", "0.2"],
    ["--data.batchsize", "3"],
    ["--trainer.max_epochs"],
    ["--trainer.callbacks", "--name", "x"],
    ["--config", "nowhere.yaml"],
    ["--config", "."],
    ["--config"],
    ["--ckpt_path", "nowhere"],
    ["--weights_only", "false"],
]
WRONG_CONFIGS = [
    "trainr: {max_epochs: 3}",
    "trainer: {max_epoch: 3}",
    "model: {lrr: 3}",
    "model: {dropkey: {raito: 0.2}}",
    "data: {batchsize: 3}",
    "lr: 1",
    "model: [1, 2\ntrainer: x",
    "- 1",
    "ckpt_path: 3",
    "weights_only: false",
]


@pytest.mark.parametrize("words", [*WRONG, *WRONG_CONFIGS], ids=str)
def test_the_parser_says_the_same_when_it_comes_to_it(words: list[str] | str) -> None:
    given = list(write(words)) if isinstance(words, str) else words
    with pytest.raises(InputError, match=r"\w") as early:
        check_early("fit", given)
    with pytest.raises(InputError, match=rf"^{re.escape(str(early.value))}$"):
        run("fit", given)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--model", "my.Model", "--model.width", "3"],
        ["--model=my.Model", "--model.dropkey.width", "3"],
        ["--model.class_path", "my.Model", "--model.init_args.width", "3"],
        ["--data", "my.Data", "--data.width=3"],
        ["--model", "model.yaml", "--model.width", "3"],
        ["--trainer", "trainer.yaml", "--trainer.logger.save_dir", "x"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.patience=3"],
        ["--model.model_args.depth", "3", "--model.dropkey.class_path", "my.Settings"],
        ["--model.help", "my.Model"],
        ["--trainer.max_steps", "-1", "--print_config"],
        ["--config", "{model: {width: 3}}"],
        ["--config", "name: x"],
        ["--config", "-", "--model.width", "3"],
        ["--data.root", "data", "--model.model_name", "vit_tiny_patch16_224"],
        ["--name", "data"],
        ["--name", "model", "--trainer.max_epochs", "1"],
        ["stray", "-x"],
    ],
    ids=" ".join,
)
def test_what_the_parser_may_accept_is_left_to_it(words: list[str]) -> None:
    check_early("fit", words)


@pytest.mark.parametrize(
    "content",
    [
        "model: {class_path: my.Model, init_args: {width: 3}}",
        "model: my.Model",
        "data: {class_path: my.Data}\ntrainer: {callbacks: [{class_path: x}], logger: {class_path: x, init_args: {}}}",
        "model: {model_args: {depth: 3}, dropkey: {class_path: my.Settings, init_args: {width: 3}}}",
        "model: {dropkey: null}\ntrainer: {callbacks+: [x]}",
    ],
)
def test_a_config_that_the_parser_may_accept_is_left_to_it(content: str) -> None:
    check_early("fit", [*write(content), *(["--model.width=3"] if "my.Model" in content else [])])


def test_an_unknown_option_is_named_before_a_missing_checkpoint() -> None:
    with pytest.raises(InputError, match=r"^unknown option --ckpt_pth; did you mean '--ckpt_path'\?$"):
        check_early("predict", ["--ckpt_pth", "x"])


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "{trainer: {max_epochs: 1, max_epochs: 2}}"],
        ["--config", "name: a\nmax_epochs: 1\nmax_epochs: 2"],
        ["--model.model_args={max_epochs: 1, max_epochs: 2}"],
        ["--trainer.callbacks", "[{max_epochs: 1, max_epochs: 2}]"],
    ],
)
def test_a_key_given_twice_on_the_command_line_is_refused_as_in_files(words: list[str]) -> None:
    with pytest.raises(InputError, match=r"^--\S+ .*: the key 'max_epochs' is given twice, in line"):
        check_early("fit", words)


def test_what_is_no_yaml_may_be_a_text() -> None:
    check_early("fit", ["--name", "{a: 1", "--data.root", "[x"])


def test_classes_of_a_checkpoint_are_left_to_the_parser() -> None:
    Path("a.ckpt").touch()
    check_early("predict", ["--ckpt_path", "a.ckpt", "--model.width", "3", "--data.depth", "3"])
    with pytest.raises(InputError, match=r"unknown option --modle\.width"):
        check_early("predict", ["--ckpt_path", "a.ckpt", "--modle.width", "3"])
    with pytest.raises(InputError, match="no checkpoint given"):
        check_early("predict", [])


def test_an_option_of_a_checkpoints_class_needs_a_value() -> None:
    with pytest.raises(InputError, match=r"--model\.lr: expected one argument"):
        check_early("fit", ["--model.lr"])
    Path("a.ckpt").touch()
    with pytest.raises(InputError, match=r"--model\.width: expected one argument"):
        check_early("predict", ["--ckpt_path", "a.ckpt", "--model.width"])


@pytest.mark.parametrize("value", ["3", "false", "null", "[]"])
def test_a_section_that_is_none_is_not_replaced_by_the_command_line(value: str) -> None:
    with pytest.raises(InputError, match=r"^trainer is .*: give its options"):
        check_early("fit", [*write(f"trainer: {value}"), "--trainer.max_epochs=1"])


def test_a_device_is_no_config() -> None:
    with pytest.raises(InputError, match="'/dev/zero' is a device"):
        check_early("fit", ["--config", "/dev/zero"])


def test_a_config_in_the_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder / "home"
    home.mkdir()
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    (home / "c.yaml").write_text("name: x")
    check_early("fit", ["--config", "~/c.yaml"])
    (home / "c.yaml").write_text("nmae: x")
    with pytest.raises(InputError, match="unknown option --nmae"):
        check_early("fit", ["--config", "~/c.yaml"])


def test_configs_of_the_repository_pass() -> None:
    for config in (Path(__file__).parents[2] / "configs").glob("*.yaml"):
        check_early("fit", ["--config", str(config)])


def test_the_root_decides_which_options_of_data_are_known() -> None:
    check_early("fit", ["--data.root", "labels.csv", "--data.label_column", "x"])
    check_early("fit", list(write("data: {root: labels.csv, label_column: x}")))
    with pytest.raises(InputError, match=r"unknown option --data\.label_colum; did you mean '--data\.label_column'"):
        check_early("fit", ["--data.root", "labels.csv", "--data.label_colum", "x"])
    with pytest.raises(InputError, match=r"unknown option --data\.label_column"):
        check_early("fit", ["--data.root", "photos", "--data.label_column", "x"])
