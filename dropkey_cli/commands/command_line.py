"""What must be known of the command line before it can be parsed: its configs and its checkpoint."""

import os
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dropkey_cli.checkpoints import find_checkpoint
from dropkey_cli.commands.recipes import config_file
from dropkey_cli.commands.yaml_text import is_text, load_yaml
from dropkey_cli.errors import InputError

_NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
            "SLURM_NTASKS", "SLURM_RESTART_COUNT")  # fmt: skip

ROOTS = ("root", "val_root", "test_root")
"""The options of data that name files or folders with labels."""


def check_words(words: list[str]) -> None:
    """Refuse words that neither YAML nor a file system can hold; Python reads bytes that are no UTF-8 as lone surrogates.

    Raises:
        InputError: With the option and its value.
    """
    for before, word in zip(["", *words], words, strict=False):
        if not is_text(word):
            option = f"the value of {before}" if before.startswith("--") and not word.startswith("--") else "the word"
            raise InputError(f"{option} {word!r} is no UTF-8 text; expected letters and signs; correct it, or rename the file")


def underscored(words: list[str]) -> list[str]:
    """The words with ``--top-k`` written as ``--top_k``: people and scripts type both."""
    return [_underscored(word) if word.startswith("--") else word for word in words]


def _underscored(word: str) -> str:
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def check_environment() -> None:
    """Refuse numbers of processes that are none: the launchers set them, and a shell may have kept some.

    Raises:
        InputError: With the variable's name.
    """
    for name in _NUMBERS:
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdecimal()):
            raise InputError(f"the environment variable {name} is {value!r}; expected a whole number; unset it")


def configs_first(words: list[str]) -> list[str]:
    """The words with all ``--config FILE`` in front, recipes by their files.

    Later words win, and the command line wins over every config.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", nargs="?", default=[])
    given, rest = parser.parse_known_args(words)
    if None in given.config:
        raise InputError("--config needs a YAML file or a recipe's name: write --config FILE; dropkey configs lists recipes")
    return [word for path in given.config for word in ("--config", config_file(path))] + rest


def given_checkpoint(words: list[str]) -> str | None:
    """``--ckpt_path`` from the command line or, failing that, from the configs: needed before the rest can be parsed."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path", nargs="?")
    parser.add_argument("--config", action="append", default=[])
    given, _ = parser.parse_known_args(words)
    for path in reversed(given.config):
        content = read_config(path) if Path(path).expanduser().is_file() else {}
        if given.ckpt_path is None:
            given.ckpt_path = content.get("ckpt_path")
    if given.ckpt_path is not None and not isinstance(given.ckpt_path, str):
        raise InputError(f"ckpt_path {given.ckpt_path!r} is not valid: give a file, a run folder, best or last")
    return None if given.ckpt_path in (None, "null") else given.ckpt_path


def asked_checkpoint(command: str, words: list[str]) -> Path | None:
    """The checkpoint file that a command needs or was given.

    Args:
        command: fit, validate, test or predict; only fit does without.
        words: Its options.

    Raises:
        InputError: If there is none; the message lists those there are.
    """
    given = given_checkpoint(words)
    if given is None and (command == "fit" or {"-h", "--help", "--print_config"} & set(words)):
        return None
    return find_checkpoint(given, prefer="last" if command == "fit" else "best")


def given_root(words: list[str]) -> str | None:
    """Where the labelled images lie, as the command line says or, failing that, the configs."""
    return next(filter(None, map(root_of, given_data(words))), None)


def root_of(options: dict[Any, Any]) -> str | None:
    """The file or folder with labels that options of data name; None if none does."""
    return next((root for name in ROOTS if isinstance(root := options.get(name), str) and root), None)


def given_data(words: list[str]) -> Iterator[dict[Any, Any]]:
    """What is said of the data: what the command line says of some options; what the last config says; the one before."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data", "--data.class_path", dest="class_path", nargs="?")
    for name in (*ROOTS, "label_column", "label_separator"):
        parser.add_argument(f"--data.{name}", f"--data.init_args.{name}", dest=name, nargs="?")
    parser.add_argument("-c", "--config", dest="", action="append", nargs="?", default=[])
    given = vars(parser.parse_known_args(words)[0])
    configs = given.pop("")
    yield given
    for path in reversed(configs):
        section = read_config(path).get("data") if path and os.path.isfile(Path(path).expanduser()) else None
        options = section if isinstance(section, dict) else {"class_path": section}
        inner = options.get("init_args")
        yield {**options, **(inner if isinstance(inner, dict) else {})}


def read_config(path: str) -> dict[Any, Any]:
    """What a YAML file says, section by section.

    Raises:
        InputError: If it is no YAML, or no sections.
    """
    try:
        content = load_yaml(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path!r} cannot be read ({error.strerror}): check the path and its permissions") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that no calendar has
        raise InputError(f"--config {path!r} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path!r} holds no options: give lines such as trainer: {{max_epochs: 20}}")
    return content
