"""``dropkey configs [NAME]``: the shipped recipes with their claims; prints one, or copies it."""

import shutil
import sys
import textwrap
from argparse import ArgumentParser
from pathlib import Path
from typing import NoReturn

from dropkey_cli.commands.recipes import Recipe, find_recipe, recipes
from dropkey_cli.errors import InputError, did_you_mean

DESCRIPTION = "The recipes that come with dropkey. dropkey fit --config NAME runs one; later options and overlays change it."
NOTES = """\
print one:          dropkey configs NAME
copy one to edit:   dropkey configs NAME --copy [FILE]
run one:            dropkey fit --config NAME (a file of that name wins)
"""


def configs(words: list[str]) -> None:
    """List the recipes, print one, or copy it.

    Args:
        words: The words after ``dropkey configs``.

    Raises:
        InputError: If there is no such recipe, or the copy would replace a file.
    """
    options = _parser().parse_args(words)
    known = recipes()
    if not known:
        raise InputError("the recipes are not installed: they lie in configs/ of dropkey's source; pip install dropkey anew")
    if options.name is None:
        if options.copy is not None:
            raise InputError(f"--copy needs the recipe's name: give one of {_names(known)}")
        print(_list(known))
        return
    recipe = find_recipe(options.name)
    if recipe is None:
        near = did_you_mean(options.name, [recipe.name for recipe in known])
        raise InputError(f"{options.name!r} is no recipe: give one of {_names(known)}{near}")
    if options.copy is None:
        print(recipe.text, end="")
    else:
        _copy(recipe, Path(options.copy or f"{recipe.path.stem}.yaml").expanduser())


def _copy(recipe: Recipe, target: Path) -> None:
    if target.is_dir():
        target = target / recipe.path.name
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(recipe.text)
    except FileExistsError as error:
        raise InputError(f"{str(target)!r} is there already: give another file, --copy FILE") from error
    except OSError as error:
        raise InputError(f"cannot write {str(target)!r} ({error.strerror}): give another file, --copy FILE") from error
    print(f"{target}: change it, then dropkey fit --config {target}")


def _list(known: list[Recipe]) -> str:
    """One block for each recipe, as wide as the terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    indent = 2 + max(len(recipe.name) for recipe in known)
    lines: list[str] = []
    for recipe in known:
        texts = [recipe.description, f"Claim: {recipe.claim}"]
        for label, text in zip((recipe.name, ""), texts, strict=True):
            wrapped = textwrap.wrap(text, max(20, width - indent), break_on_hyphens=False)
            lines += [f"{label if number == 0 else '':<{indent}}{line}" for number, line in enumerate(wrapped)]
        lines.append("")
    return "\n".join(lines) + f"\n{NOTES.rstrip()}"


def _names(known: list[Recipe]) -> str:
    return ", ".join(recipe.name for recipe in known)


class _Parser(ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; write dropkey configs, dropkey configs NAME, or dropkey configs NAME --copy [FILE]")


def _parser() -> ArgumentParser:
    usage = "dropkey configs [NAME] [--copy [FILE]]"
    parser = _Parser(prog="dropkey configs", usage=usage, description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("name", nargs="?", metavar="NAME", help="Print this recipe; without a name, all are listed.")
    parser.add_argument("--copy", nargs="?", const="", metavar="FILE", help="Copy it instead (default: NAME.yaml, here).")
    return parser
