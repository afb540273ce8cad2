"""The shipped recipes: where they lie, in a checkout and in an installed environment, and what their heads say."""

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dropkey_cli.errors import did_you_mean

SHARE = Path("share", "dropkey", "configs")


@dataclass(frozen=True)
class Recipe:
    """A config that comes with dropkey.

    Args:
        name: What ``--config`` takes, e.g. quickstart or overlays/ddp.
        path: The file.
    """

    name: str
    path: Path

    @property
    def text(self) -> str:
        """The whole file."""
        return self.path.read_text(encoding="utf-8")

    @property
    def description(self) -> str:
        """What its head says before the claim."""
        return " ".join(line for line in _head(self.text).split("Claim:")[0].splitlines() if not line.startswith(" ")).strip()

    @property
    def claim(self) -> str:
        """What its head says that it reaches."""
        lines: list[str] = []
        for line in _head(self.text).partition("Claim:")[2].splitlines():
            if lines and (line.startswith("  ") or lines[-1].endswith(".")):  # commands, or the next sentence
                break
            lines.append(line.strip())
        return " ".join(lines)


def recipes() -> list[Recipe]:
    """All that are shipped, overlays last; none where the installation left them out."""
    folder = next((place for place in _places() if place.is_dir()), None)
    if folder is None:
        return []
    paths = sorted([*folder.glob("*.yaml"), *folder.glob("*/*.yaml")], key=lambda path: (_group(path, folder), path))
    return [Recipe(path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths]


def find_recipe(given: str) -> Recipe | None:
    """The recipe of a name: quickstart, overlays/ddp or ddp, with or without configs/ and .yaml."""
    name = given.replace(os.sep, "/").removesuffix(".yaml").removeprefix("configs/")
    known = recipes()
    found = [recipe for recipe in known if recipe.name == name] or [one for one in known if one.path.stem == name]
    return found[0] if len(found) == 1 else None


def config_file(given: str) -> str:
    """What a ``--config`` means: the file of that name or, where there is none, the shipped recipe's."""
    path = os.path.expanduser(given)
    if os.path.exists(path) and not os.path.isdir(path):
        return given
    recipe = find_recipe(given)
    return given if recipe is None else str(recipe.path)


def missing_config(path: str) -> str:
    """One sentence for a ``--config`` that is neither a file nor a recipe."""
    trouble = "is not a file" if os.path.isdir(path) else "does not exist"
    near = did_you_mean(Path(path).name.removesuffix(".yaml"), [recipe.name for recipe in recipes()])
    return f"--config {path!r} {trouble}: check the path{near or ', or give a recipe that dropkey configs lists'}"


def _group(path: Path, folder: Path) -> int:
    """Where a recipe is listed: those of the folder itself, then its sub-folders', overlays last."""
    return 0 if path.parent == folder else 2 if path.parent.name == "overlays" else 1


def _places() -> Iterator[Path]:
    """Where the recipes may be: beside the package in a checkout, else in the environment's folder for data."""
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").is_file():
        yield root / "configs"
    yield Path(sysconfig.get_path("data")) / SHARE
    yield Path(sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))) / SHARE  # pip install --user
    yield root / SHARE  # pip install --target


def _head(text: str) -> str:
    """The comment at the beginning, without its signs."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])
