"""``dropkey fit --help``: the options that people use, a section's, all, or those about a word; without importing torch."""

import re
import textwrap
from argparse import Action, ArgumentParser, HelpFormatter

from dropkey_cli.commands.option_list import SECTIONS, Option, sections, tool_options
from dropkey_cli.commands.tool_options import TOOLS
from dropkey_cli.errors import InputError, did_you_mean

# What --help lists beside the command's own options; --help SECTION lists the rest
COMMON = {
    "data": ("root", "batch_size", "num_workers"),
    "trainer": ("accelerator", "devices", "precision"),
}
COMMON_OF_FIT = {
    "data": ("root", "val_fraction", "image_size", "batch_size", "num_workers"),
    "model": ("model_name", "pretrained", "lr", "weight_decay"),
    "dropkey": ("ratio", "schedule", "structure"),
    "trainer": ("max_epochs", "accelerator", "devices", "precision", "accumulate_grad_batches", "gradient_clip_val"),
}
TITLES = {"dropkey": "DropKey"}
PREFIXES = {"run": "", "data": "data.", "model": "model.", "dropkey": "model.dropkey.", "trainer": "trainer."}
NOTES = """\
all options of a section:  dropkey {command} --help run, data, model, dropkey or trainer
options about a word:      dropkey {command} --help batch
all options there are:     dropkey {command} --help-all
"""
NOTES_OF_FIT = """
In a YAML file for --config, --model.lr 1e-3 is a line lr: 1e-3 under model. --model.dropkey null trains without DropKey.
Another data set or task: --data CLASS_PATH, --model CLASS_PATH.
"""
NOT_COMMON = {"print_config", "seed_everything"}


def print_help(command: str, words: list[str], about: str) -> None:
    """Print a command's help.

    Args:
        command: fit, validate, test or predict.
        words: The command line: the classes that --data and --model name are described.
        about: What is after --help. Nothing: the common options; run, data, model, dropkey or trainer: those of that section;
            all: all of them; another word: those that have it in their names or texts.

    Raises:
        InputError: If no option is about that word.
    """
    every = sections(command, words)
    if not about:
        shown = _common(command, every)
    elif about.lower() in every:
        shown = {about.lower(): every[about.lower()]}
    elif about == "all":
        shown = every
    else:
        shown = _about(about, every)
    parser = _parser(f"dropkey {command}", "[--config FILE] [--OPTION VALUE ...]")
    for section, options in shown.items():
        _add(parser, TITLES.get(section, section), options)
    parser.print_help()
    if not about:
        print(f"\n{NOTES.format(command=command)}{NOTES_OF_FIT if command == 'fit' else ''}", end="")


def print_tool_help(command: str) -> None:
    """Print the help of a command that takes options of its own only.

    Args:
        command: check, inspect, benchmark or export.
    """
    tool = TOOLS[command]
    parser = _parser(f"dropkey {command}", tool.arguments, tool.description)
    _add(parser, "options", tool_options(command))
    parser.print_help()


def _common(command: str, every: dict[str, list[Option]]) -> dict[str, list[Option]]:
    wanted = COMMON_OF_FIT if command == "fit" else COMMON
    found = {"run": [option for option in every["run"] if option.name not in NOT_COMMON]}
    for section, names in wanted.items():
        by_name = {option.name: option for option in every[section]}
        found[section] = [by_name[f"{PREFIXES[section]}{name}"] for name in names if f"{PREFIXES[section]}{name}" in by_name]
    return {section: options for section, options in found.items() if options}


def _about(word: str, every: dict[str, list[Option]]) -> dict[str, list[Option]]:
    """The options with a word in their names, or at least in their texts."""
    name = word.lower().lstrip("-").replace("-", "_")
    begins = re.compile(rf"(^|[\W_]){re.escape(name)}")
    for text in ("name", "help"):
        found = {
            section: [one for one in options if begins.search(getattr(one, text).lower())] for section, options in every.items()
        }
        if any(found.values()):
            return {section: options for section, options in found.items() if options}
    parts = {part for options in every.values() for option in options for part in re.split(r"[._]", option.name)}
    near = did_you_mean(name, parts | set(SECTIONS))
    raise InputError(f"no option is about {word!r}: give {', '.join(SECTIONS)} or all{near}")


class _Formatter(HelpFormatter):
    """As wide as the terminal, with the texts in one column; no metavar is repeated."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _format_action_invocation(self, action: Action) -> str:
        return " ".join(filter(None, (*action.option_strings, str(action.metavar or ""))))


def _parser(prog: str, arguments: str, description: str | None = None) -> ArgumentParser:
    return ArgumentParser(
        prog, usage=f"{prog} {arguments}", description=description, add_help=False, formatter_class=_Formatter
    )


def _add(parser: ArgumentParser, title: str, options: list[Option]) -> None:
    group = parser.add_argument_group(title)
    for option in options:
        default = f" (default: {option.default})" if option.default not in (None, "") else ""
        group.add_argument(
            f"--{option.name}", metavar=option.value or None, help=(option.help + default).replace("%", "%%"), dest=option.name
        )
