import os
import subprocess
import sys
from pathlib import Path

import pytest

from dropkey_cli.commands.recipes import Recipe, config_file, find_recipe, missing_config, recipes

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_config_of_the_checkout_is_a_recipe() -> None:
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in CONFIGS.rglob("*.yaml")}
    assert {recipe.name: recipe.path for recipe in recipes()} == files
    overlays = [recipe.name.startswith("overlays/") for recipe in recipes()]
    assert overlays == sorted(overlays)


def test_every_recipe_says_what_it_is_and_what_it_reaches() -> None:
    for recipe in recipes():
        assert recipe.description.endswith(".")
        assert recipe.claim.endswith(".")
        assert "dropkey fit" not in recipe.description + recipe.claim


def test_a_head_may_run_over_several_lines(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "# One\n# thing.\n# Claim: it\n# holds.\n# Another sentence.\n#   command\nx: 1\n# no head\n"
    )
    recipe = Recipe("a", tmp_path / "a.yaml")
    assert (recipe.description, recipe.claim) == ("One thing.", "it holds.")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("quickstart", "quickstart"),
        ("quickstart.yaml", "quickstart"),
        ("configs/quickstart.yaml", "quickstart"),
        ("overlays/ddp", "overlays/ddp"),
        ("ddp", "overlays/ddp"),
        ("configs/overlays/ddp.yaml", "overlays/ddp"),
    ],
)
def test_names_of_a_recipe(given: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = find_recipe(given)
    assert recipe is not None
    assert recipe.name == name
    assert config_file(given) == str(CONFIGS / f"{name}.yaml")


def test_a_file_wins_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    assert config_file("quickstart") == str(CONFIGS / "quickstart.yaml")
    Path("quickstart.yaml").write_text("name: mine")
    assert config_file("quickstart.yaml") == "quickstart.yaml"
    for other in ("nowhere", "-", "{name: x}"):
        assert config_file(other) == other


def test_a_config_that_is_missing_names_the_nearest_recipe() -> None:
    assert missing_config("quikstart.yaml").endswith("does not exist: check the path; did you mean 'quickstart'?")
    assert missing_config("my.yaml").endswith("check the path, or give a recipe that dropkey configs lists")
    assert "is not a file" in missing_config(os.curdir)


@pytest.mark.slow
def test_an_installed_wheel_has_the_recipes(tmp_path: Path) -> None:
    def done(*command: str, **options: object) -> str:
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    root = str(CONFIGS.parent)
    done(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), root)
    done(sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", "venv")
    place = done("venv/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # What this interpreter has, which may itself be of a venv, whose packages the new one does not see
    (Path(place) / "outer.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")))
    wheel = str(next(tmp_path.glob("*.whl")))
    done(sys.executable, "-m", "pip", "--python", "venv/bin/python", "install", "--no-deps", "--ignore-installed", wheel)
    listed = done("venv/bin/dropkey", "configs")
    assert all(recipe.name in listed for recipe in recipes())
    assert done("venv/bin/dropkey", "configs", "quickstart") == (CONFIGS / "quickstart.yaml").read_text()
    path = done(
        "venv/bin/python", "-c", "from dropkey_cli.commands.recipes import find_recipe as f; print(f('quickstart').path)"
    )
    assert path.startswith(str(tmp_path / "venv"))
    assert "dropkey_cli.data.digits.Digits" in done("venv/bin/dropkey", "fit", "--config", "quickstart", "--print_config")
