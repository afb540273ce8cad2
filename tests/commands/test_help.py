import os
import subprocess
import sys

import pytest

from dropkey_cli.cli import TRAINER_COMMANDS, main
from dropkey_cli.commands.help import COMMON_OF_FIT, PREFIXES, print_help, print_tool_help
from dropkey_cli.commands.option_list import sections
from dropkey_cli.commands.own_options import own_options
from dropkey_cli.errors import InputError


def help_text(capsys: pytest.CaptureFixture[str], command: str, about: str = "", *words: str) -> str:
    print_help(command, list(words), about)
    return " ".join(capsys.readouterr().out.split())


def test_fit_help_is_short_and_explains_the_common_options(capsys: pytest.CaptureFixture[str]) -> None:
    print_help("fit", [], "")
    out = capsys.readouterr().out
    assert out.startswith("usage: dropkey fit [--config FILE] [--OPTION VALUE ...]\n\nrun:\n  --config FILE")
    assert [line for line in out.splitlines() if line.endswith(":") and line[0] != " "] == [
        "run:", "data:", "model:", "DropKey:", "trainer:"
    ]  # fmt: skip
    text = " ".join(out.split())
    for words in (
        "--model.model_name TEXT timm's name of the network",
        "--model.pretrained true|false Start from timm's pretrained weights; false trains from scratch. (default: true)",
        "--model.dropkey.ratio NUMBER Drop ratio the schedule starts from: the share of keys each query loses",
        "--data.val_fraction NUMBER Share of each class held out",
        "--trainer.max_epochs INTEGER Passes over the training images; -1 for no limit",
        "--on_nonfinite_loss stop|skip What a loss",
        "dropkey fit --help-all",
    ):
        assert words in text
    assert "CONFIG" not in out
    assert "--model.layer_decay" not in out
    assert len(out.splitlines()) < 125


def test_every_common_option_exists() -> None:
    every = {option.name for options in sections("fit", []).values() for option in options}
    assert {f"{PREFIXES[section]}{name}" for section, names in COMMON_OF_FIT.items() for name in names} <= every


@pytest.mark.parametrize("section", ["run", "data", "model", "dropkey", "trainer"])
def test_a_section_lists_all_its_options(section: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = help_text(capsys, "fit", section)
    for option in sections("fit", [])[section]:
        assert f"--{option.name} " in out
    assert ("--trainer.devices" in out) == (section == "trainer")


def test_help_all_lists_every_option_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help-all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  --")]
    assert listed == [f"--{option.name}" for options in sections("fit", []).values() for option in options]
    assert main(["fit", "--help_all"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_help_about_a_word_lists_what_has_it_in_its_name_or_text(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [word for word in help_text(capsys, "fit", "batch").split() if word.startswith("--")]
    assert listed[:2] == ["--data.batch_size", "--trainer.limit_train_batches"]
    assert not any("stop" in word for word in listed)
    assert "--model.lr NUMBER Learning rate" in help_text(capsys, "fit", "learning")  # in a text only
    assert "--trainer.log_every_n_steps" in help_text(capsys, "fit", "--log-every")
    with pytest.raises(InputError, match=r"^no option is about 'dekay': give run, data, .*; did you mean 'decay'\?$"):
        print_help("fit", [], "dekay")


def test_help_describes_the_class_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    digits = "dropkey_cli.data.digits.Digits"
    for words in (["--data", digits], [f"--data={digits}"]):
        out = help_text(capsys, "fit", "data", *words)
        assert "--data.degrees NUMBER A training image is turned" in out
        assert "--data.val_fraction" not in out
    for wrong in ("nowhere.Data", "Data", "dropkey_cli.data.digits.Digitss"):
        with pytest.raises(InputError, match=f"--data '{wrong}' has no source file .*--data.help {wrong}"):
            print_help("fit", ["--data", wrong], "data")


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_every_command_lists_its_own_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(capsys, command)
    assert f"usage: dropkey {command} [--config FILE] [--OPTION VALUE ...]" in text
    assert "--ckpt_path" in text
    for option in own_options(command):
        assert (f"--{option.name} " in text) == (command in option.commands)
    assert ("--model.lr" in text) == ("--resume" in text) == (command == "fit")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--config", "missing.yaml", "--help"], ["--help", "--nmae", "x"]])
def test_help_flag_of_a_command_ends_with_0(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *words]) == 0
    out, err = capsys.readouterr()
    assert "usage: dropkey predict" in out
    assert err == ""


def test_a_word_after_help_is_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help", "dropkey"], ["--help=dropkey"]):
        assert main(["fit", *words]) == 0
        out = capsys.readouterr().out
        assert "--model.dropkey.window_size" in out
        assert "--data" not in out
    assert main(["fit", "--help", "xyzzy"]) == 2
    assert "no option is about 'xyzzy'" in capsys.readouterr().err


def test_help_is_as_wide_as_the_terminal() -> None:
    texts = {}
    for width in (60, 160):
        environment = {**os.environ, "COLUMNS": str(width)}
        run = subprocess.run(
            [sys.executable, "-m", "dropkey_cli", "fit", "--help", "data"], env=environment, capture_output=True
        )
        texts[width] = run.stdout.decode().splitlines()
        assert max(map(len, texts[width])) <= width
    assert len(texts[160]) < len(texts[60])


def test_commands_with_options_of_their_own_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    print_tool_help("inspect")
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("usage: dropkey inspect MODEL [--OPTION VALUE ...] Where a model attends")
    assert "--dropkey.structure element|key|block|cross element: every query" in out
    print_tool_help("check")
    assert capsys.readouterr().out.startswith("usage: dropkey check ROOT [--OPTION VALUE ...]\n\nRead every image")
    print_tool_help("benchmark")
    out = " ".join(capsys.readouterr().out.split())
    assert "--precision 32-true|bf16-mixed|16-mixed Default: bf16-mixed" in out
    assert "--fit Time a training run" in out


def test_a_table_as_root_lists_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data.label_column TEXT Column of the labels" in help_text(capsys, "fit", "data", "--data.root=labels.csv")
    assert "--data.label_column" not in help_text(capsys, "fit", "data")
