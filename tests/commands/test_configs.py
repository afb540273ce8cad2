from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dropkey_cli.commands.configs import configs
from dropkey_cli.commands.recipes import recipes
from dropkey_cli.errors import InputError

ROOT = Path(__file__).parents[2] / "configs"
Dropkey = Callable[..., Any]


def test_all_recipes_are_listed_with_their_claims(dropkey: Dropkey) -> None:
    out = dropkey("configs").out
    for recipe in recipes():
        assert f"\n{recipe.name} " in f"\n{out}"
        assert f"Claim: {recipe.claim}" in out
    assert "dropkey configs NAME --copy" in out


def test_one_is_printed_as_it_is(dropkey: Dropkey) -> None:
    assert dropkey("configs", "quickstart").out == (ROOT / "quickstart.yaml").read_text()


def test_a_copy_is_a_config_of_ones_own_and_replaces_nothing(dropkey: Dropkey) -> None:
    assert dropkey("configs", "quickstart", "--copy").out.startswith(
        "quickstart.yaml: change it, then dropkey fit --config quick"
    )
    assert Path("quickstart.yaml").read_text() == (ROOT / "quickstart.yaml").read_text()
    refused = dropkey("configs", "quickstart", "--copy")
    assert refused.code == 2
    assert "'quickstart.yaml' is there already: give another file, --copy FILE" in refused.err
    assert dropkey("configs", "overlays/ddp", "--copy", "mine.yaml").code == 0
    assert Path("mine.yaml").read_text() == (ROOT / "overlays" / "ddp.yaml").read_text()
    Path("folder").mkdir()
    assert dropkey("configs", "ddp", "--copy=folder").code == 0
    assert Path("folder/ddp.yaml").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quikstart"], "'quikstart' is no recipe: give one of .*quickstart, .*; did you mean 'quickstart'"),
        (["--copy"], "--copy needs the recipe's name"),
        (["quickstart", "--copy", "nowhere/x.yaml"], "cannot write 'nowhere/x.yaml'"),
        (["quickstart", "more"], "unrecognized arguments: more; write dropkey configs, "),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        configs(words)


def test_fit_takes_a_recipe_by_its_name_and_a_file_of_that_name_wins(dropkey: Dropkey) -> None:
    printed = yaml.safe_load(dropkey("fit", "--config", "quickstart", "--config", "bf16", "--print_config").out)
    assert printed["data"]["class_path"] == "dropkey_cli.data.digits.Digits"
    assert printed["trainer"]["precision"] == "bf16-mixed"
    Path("quickstart").write_text("name: mine")
    printed = yaml.safe_load(dropkey("fit", "--config", "quickstart", "--print_config").out)
    assert printed["name"] == "mine"
    assert printed["data"]["class_path"] == "dropkey_cli.data.image_folder.ImageFolder"
