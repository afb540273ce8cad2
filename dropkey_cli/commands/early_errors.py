"""Refuses what is wrong with a command line or a config before torch and Lightning are imported, which takes seconds.

Only what is certainly wrong is refused here, in the words of config_errors; the parser looks at everything once more.
"""

import os
import stat
from collections.abc import Iterator
from typing import Any

import yaml

from dropkey_cli.commands.command_line import asked_checkpoint, configs_first, read_config
from dropkey_cli.commands.defaults import default_classes
from dropkey_cli.commands.nearest import near_options
from dropkey_cli.commands.option_list import TRAINER
from dropkey_cli.commands.own_options import own_options
from dropkey_cli.commands.recipes import missing_config
from dropkey_cli.commands.signatures import constructor_options, outline, parameter_names
from dropkey_cli.commands.yaml_text import RepeatedKeyError, load_yaml
from dropkey_cli.errors import InputError

# Of Trainer.fit and the like
_NOT_OPTIONS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "weights_only"}
_SECTIONS = ("--trainer.", "--model.", "--data.")
_OF_A_CLASS = {"class_path", "init_args", "dict_kwargs"}


def check_early(command: str, words: list[str]) -> None:
    """Refuse missing files, broken YAML, unknown options and options without a value.

    Args:
        command: fit, validate, test or predict.
        words: Its options.

    Raises:
        InputError: If something is wrong for sure.
    """
    words = configs_first(words)
    names = [_name(word) for word in words]
    if any(name.endswith(".help") for name in names):
        return  # it is answered before anything is refused
    paths = [path for name, path in zip(names, words[1:], strict=False) if name == "config"]
    configs = [read_config(path) for path in paths if _is_file(path)]
    _check_sections(configs)
    given = [*filter(None, names), *(key for config in configs for key in _keys(config))]
    known = known_options(command, words)
    _check_names(given, known, {"trainer"})
    _check_inline(words)
    checkpoint = asked_checkpoint(command, words)
    # What a checkpoint, standard input or a pipe says may name other classes
    all_read = len(configs) == len(paths) and checkpoint is None
    parts = {part for part in ("model", "data") if all_read and _is_default_class(part, names, configs)}
    _check_names(given, known, {"trainer", *parts})
    for word, value in zip(words, [*words[1:], "--"], strict=False):
        takes_value = word[2:] in known - {"print_config"} or word.startswith(_SECTIONS)
        if word.startswith("--") and takes_value and "=" not in word and value.startswith("--"):
            raise InputError(f"{word}: expected one argument; write it as --option value")


def known_options(command: str, words: list[str]) -> set[str]:
    """The options of a command, with those of the classes that it runs where none are named."""
    options = {"config", "print_config", "seed_everything", "trainer", "model", "data"}
    options |= {option.name for option in own_options(command)}
    options |= {"resume"} if command == "fit" else set()
    options |= set(parameter_names(TRAINER, command)) - _NOT_OPTIONS
    options |= {f"trainer.{name}" for name in parameter_names(TRAINER, "__init__")}
    for part, class_path in default_classes(command, words).items():
        options |= {f"{part}.{name}" for name in constructor_options(outline(class_path))}
    return options


def _check_names(names: list[str], known: set[str], parts: set[str]) -> None:
    for name in names:
        if _is_unknown(name, known, parts):
            raise InputError(f"unknown option --{name}{near_options(name, known)}")


def _check_inline(words: list[str]) -> None:
    """Refuse keys that are given twice in YAML on the command line, as in files."""
    for word, after in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        text = value if equals else after
        if not name.startswith("--") or not (text.startswith(("{", "[")) or (name == "--config" and ":" in text)):
            continue
        try:
            load_yaml(text)
        except RepeatedKeyError as error:
            raise InputError(f"{name} {text!r}: {error}") from error
        except yaml.YAMLError:  # the parser says so, if it is to be YAML
            continue


def _name(word: str) -> str:
    """The option that a word is; empty if it is none."""
    return word[2:].partition("=")[0].removesuffix("+") if word.startswith("--") else ""


def _is_file(given: str) -> bool:
    """Whether a --config can be read more than once; the parser takes a pipe, - and YAML itself, too."""
    path = os.path.join(os.getcwd(), os.path.expanduser(given))
    if os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode):  # /dev/zero never ends
        raise InputError(f"--config {path!r} is a device, not a file: check the path")
    if os.path.isdir(path) or not (os.path.exists(path) or given == "-" or set(given) & set(":{[")):
        raise InputError(missing_config(path))
    return os.path.isfile(path)


def _check_sections(configs: list[dict[Any, Any]]) -> None:
    """Refuse a section that is none: the parser would silently replace it by what the command line says."""
    for config in configs:
        for part in ("trainer", "model", "data"):
            if part in config and not isinstance(config[part], dict | str):
                raise InputError(f"{part} is {config[part]!r}: give its options, or leave it out for the defaults")


def _is_default_class(part: str, names: list[str], configs: list[dict[Any, Any]]) -> bool:
    sections = [config[part] for config in configs if part in config]
    plain = all(isinstance(section, dict) and not _OF_A_CLASS & section.keys() for section in sections)
    return plain and not {part, *(f"{part}.{key}" for key in _OF_A_CLASS)} & set(names)


def _keys(config: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of what a config sets; other keys than words are the parser's to refuse."""
    for key, value in config.items():
        if isinstance(key, str) and isinstance(value, dict) and value:
            yield from _keys(value, f"{prefix}{key}.")
        elif isinstance(key, str):
            yield prefix + key.removesuffix("+")


def _is_unknown(name: str, known: set[str], parts: set[str]) -> bool:
    """Whether a name is an option of nothing.

    Args:
        name: Dotted, e.g. model.dropkey.ratio.
        known: All options there are, if no other class than the default ones is asked for.
        parts: The parts whose class is known.
    """
    part, *rest = name.split(".")
    if part not in known:
        return True
    if part not in parts or not rest or _OF_A_CLASS & set(rest):
        return False
    nested = {option.rpartition(".")[0] for option in known if option.count(".") > 1}  # model.dropkey
    return f"{part}.{rest[0]}" not in known or (name.rpartition(".")[0] in nested and name not in known)
