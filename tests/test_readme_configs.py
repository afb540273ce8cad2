"""Every recipe and every command of the README parses, and every recipe's model can be built."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dropkey_cli.cli import COMMANDS, OTHER_COMMANDS, main
from dropkey_cli.commands import ablate, benchmark
from dropkey_cli.commands.command_line import underscored
from dropkey_cli.commands.config_errors import tool_parser
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.models.factory import create_model, image_config
from dropkey_cli.patching.apply import apply_dropkey

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND_LINES = sorted(
    {
        shlex.split(line.split("#")[0])[1:] and " ".join(shlex.split(line.split("#")[0])[1:])
        for block in re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
        for line in (part.strip() for whole in block.splitlines() for part in whole.split("&&"))
        if line.startswith("dropkey ")
    }
)


def parsed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:  # noqa: ANN401 - YAML
    capsys.readouterr()
    assert main([*words, "--print_config"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return yaml.safe_load(out)


def test_there_are_recipes_and_commands() -> None:
    assert CONFIGS
    assert COMMAND_LINES


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_recipe_parses_and_its_model_can_be_built(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = parsed(capsys, "fit", "--config", str(config))
    model, data = options["model"]["init_args"], options["data"]["init_args"]
    size = data["image_size"] or image_config(model["model_name"]).image_size
    with torch.device("meta"):
        network = create_model(
            model["model_name"], num_classes=10, image_size=size, pretrained=False, model_args=model["model_args"]
        )
    if model["dropkey"] is not None:
        images = torch.empty(2, 3, size, size, device="meta")
        assert apply_dropkey(network, DropKeySettings(**model["dropkey"]), example_inputs=(images,)).layers


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_recipe_states_its_claim_and_its_command(config: Path) -> None:
    head = [line for line in config.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("Claim:" in line for line in head)
    recipe = "--config configs/quickstart.yaml " if config.parent.name == "overlays" else ""  # an overlay needs one
    assert any(f"fit {recipe}--config {config.relative_to(ROOT)}" in line for line in head)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_of_the_readme_is_one_that_parses(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command, *words = shlex.split(line)
    assert command in COMMANDS
    if command == "benchmark":  # which takes minutes
        assert benchmark._settings(tool_parser("benchmark").parse_args(words)).rounds > 0
    elif command == "ablate":  # which takes longer
        options, recipe = ablate._split(words)
        assert len(ablate._cells(options)) > 3
        assert parsed(capsys, "fit", *recipe)
    elif command == "export":  # which needs a checkpoint; test_readme_runs runs it
        assert tool_parser("export").parse_args(underscored(words)).output
    elif command in OTHER_COMMANDS:
        assert main([command, *words]) == 0
    else:
        without_checkpoint = shlex.split(re.sub(r"--(ckpt_path|resume)[= ]\S+", "", shlex.join(words)))
        assert parsed(capsys, command, *without_checkpoint)
