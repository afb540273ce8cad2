import pytest
from jsonargparse._util import import_object

import dropkey_cli.commands.help as help_command
from dropkey_cli.cli import TRAINER_COMMANDS, main
from dropkey_cli.commands.help import print_help


def help_text(command: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    print_help(command, [*words])
    return " ".join(capsys.readouterr().out.split())


def test_fit_help_explains_our_options_with_their_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text("fit", capsys)
    for words in (
        "usage: dropkey fit",
        "--model.model_name MODEL_NAME timm's name of the network",
        "--model.dropkey.ratio RATIO Drop ratio the schedule starts from: the share of keys each query loses",
        "--model.layer_decay LAYER_DECAY Factor on the learning rate",
        "--data.val_fraction VAL_FRACTION Share of each class held out",
        "--trainer.max_epochs",
        "--name",
        "--help_all",
    ):
        assert words in text
    assert len(text) < 12_000  # Lightning's own has several hundred lines


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_help_is_what_jsonargparse_says_of_the_imported_classes(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_text(command, capsys)
    monkeypatch.setattr(help_command, "outline", import_object)
    assert help_text(command, capsys) == text


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
def test_every_command_lists_its_own_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(command, capsys)
    assert "--ckpt_path" in text
    assert ("[--name NAME]" in text) == (command == "fit")
    assert ("--top_k" in text) == ("--output" in text) == (command == "predict")


def test_help_flag_of_a_command_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--config", "missing.yaml", "--help"]) == 0
    out, err = capsys.readouterr()
    assert "usage: dropkey predict" in out
    assert err == ""


def test_a_table_as_root_lists_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data.label_column LABEL_COLUMN Column of the labels" in help_text("fit", capsys, "--data.root=labels.csv")
    assert "--data.label_column" not in help_text("fit", capsys)
