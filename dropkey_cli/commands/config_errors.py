"""Turns jsonargparse's nested error messages into one line that names the wrong part and the nearest right one."""

import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse._util import import_object
from lightning.pytorch.cli import LightningArgumentParser

from dropkey_cli.commands.signatures import constructor_options
from dropkey_cli.errors import InputError, did_you_mean

_UNKNOWN = re.compile(
    r"unrecognized arguments: --(?P<flag>[\w.+-]+)|unrecognized arguments: (?P<word>.+)"
    r"|[Oo]ption '(?P<key>[^']+)' is not accepted|does not accept option '(?P<path>[^']+)'"
)
_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_NO_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s+(module .* has no attribute .*|No module named .*)")
_GIVEN = re.compile(r"(?:Given value: |Got value: )(.*)")
_CLASS_EXAMPLES = {"model": "dropkey_cli.tasks.classification.Classification", "data": "dropkey_cli.data.digits.Digits"}
_PLAIN_TYPES = {
    "NoneType": "null",
    "PositiveInt": "a whole number from 1",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
}
_EXPECTED = re.compile(r"(?:Expected an? (?:<class ')?|Not of type )([^\n]+?)(?:'>)?(?:\. Got value.*|: .*)?$", re.MULTILINE)


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are one sentence, and which takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the parser's own
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an InputError where argparse would print its usage and exit."""
        if not self.exit_on_error:  # an attempt inside another parser, which reports it
            super().error(message, ex)
        raise InputError(explain(message, getattr(ex, "subcommand_parser", None) or self)) from ex


def explain(message: str, parser: ArgumentParser) -> str:
    """One sentence for a message of jsonargparse: what was given, what is expected, what to type.

    Args:
        message: The whole message, with one indented block per level of nesting.
        parser: The sub-command's parser, whose options are the known ones.
    """
    prefix = ".".join(_KEY.findall(message))
    if unknown := _UNKNOWN.search(message):
        return _explain_unknown(unknown.groupdict(), prefix, message, parser)
    if missing := re.search(r"File does not exist: '(.*)'|Path is not a file: '(.*)'", message):
        trouble = "does not exist" if missing[1] else "is not a file"
        return f"--{prefix} {missing[1] or missing[2]!r} {trouble}: check the path"
    if broken := _NO_CLASS.search(message):
        module, _, name = broken[1].rpartition(".")
        near = did_you_mean(name, vars(sys.modules[module])) if module in sys.modules else ""
        return f"{prefix} {broken[1]!r} cannot be imported ({broken[2]}){near}"
    if "argument expected" in message or "expected one argument" in message:
        option = re.sub(r"/--\S+\+(?=:)", "", message.removeprefix("argument "))  # --name/--name+, which appends
        return f"{option}; write it as --option value"
    given = _GIVEN.search(message)
    if prefix and given:
        expected = _EXPECTED.findall(message[: given.end()])
        innermost = expected[-_innermost_alternatives(message) :]
        if prefix in _CLASS_EXAMPLES:  # "Not a valid subclass" stands where other types say what they expect
            innermost = [f"a class path such as {_CLASS_EXAMPLES[prefix]}"]
        return f"{prefix} {given[1]!r} is not valid: expected {' or '.join(map(_plain_type, innermost))}"
    return " ".join(message.split())


def _explain_unknown(match: dict[str, str | None], prefix: str, message: str, parser: ArgumentParser) -> str:
    if match["word"] is not None:
        return f"unexpected {match['word']!r}: options are written --name value"
    name = match["flag"] or match["key"] or match["path"] or ""
    full = f"{prefix}.{name}" if prefix else name
    known = {action.dest for action in parser._actions if not action.dest.endswith("help")}
    for class_path in _CLASS.findall(message)[-1:]:  # the innermost
        known |= {f"{prefix}.{option}" for option in constructor_options(import_object(class_path))}
    known |= {f"model.{option}" for option in _options_of_default(parser, "model")}
    known |= {f"data.{option}" for option in _options_of_default(parser, "data")}
    return f"unknown option --{full}{did_you_mean(full, known)}"


def _options_of_default(parser: ArgumentParser, part: str) -> Iterable[str]:
    default = parser.get_defaults().get(part)
    return constructor_options(import_object(default.class_path)) if default is not None and "class_path" in default else ()


def _innermost_alternatives(message: str) -> int:
    """How many alternatives the innermost type had: jsonargparse lists them as Subtypes."""
    subtypes = re.findall(r"Subtypes: \[(.*)\]", message)
    return len(re.findall(r"<class|Literal|list\[|dict\[|tuple\[|Path", subtypes[-1])) if subtypes else 1


def _plain_type(name: str) -> str:
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", name)
    if name.startswith("dot import path"):
        return "a class path such as dropkey_cli.data.digits.Digits"
    return literal[1].replace("'", "") if literal else _PLAIN_TYPES.get(name, name)
