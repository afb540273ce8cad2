"""Turns jsonargparse's nested error messages into one line that names the wrong part and the nearest right one."""

import re
import sys
import traceback
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse._util import import_object
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks
from lightning.pytorch.cli import LightningArgumentParser
from yaml.representer import RepresenterError

from dropkey_cli.commands.nearest import near_options
from dropkey_cli.commands.option_list import choices
from dropkey_cli.commands.own_options import LOGGERS
from dropkey_cli.commands.recipes import missing_config
from dropkey_cli.commands.signatures import constructor_options
from dropkey_cli.commands.tool_options import TOOLS
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
_NESTED = re.compile(r"^NestedArg\(key='[^']*', val=['\"]?(.*?)['\"]?\)$")
_PLAIN_TYPES = {
    "NoneType": "null",
    "PositiveInt": "a whole number from 1",
    "PositiveFloat": "a number above 0",
    "OpenUnitInterval": "a number between 0 and 1",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list such as [a, b]",
    "collections.abc.Iterable": "a list",
    "tuple": "a list such as [0.5, 0.5, 0.5]",
    "dict": "a mapping such as {depth: 6}",
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


def tool_parser(command: str) -> OneLineParser:
    """The parser of a command's options.

    Args:
        command: inspect, benchmark or export.
    """
    parser = OneLineParser(prog=f"dropkey {command}", description=TOOLS[command].description)
    for option in TOOLS[command].options:
        if option.type is None:
            parser.add_argument(f"--{option.name}", action="store_true", help=option.help)
        else:
            parser.add_argument(f"--{option.name}", type=option.type, default=option.default, help=option.help)
    return parser


def explain_trainer(error: Exception, given: dict[str, Any]) -> str:
    """One sentence for the Trainer's refusal of its options, with those that it speaks of as they were given.

    Args:
        error: What the Trainer raised.
        given: Its options.
    """
    message = str(error)
    if "No supported gpu backend" in message:
        return "--trainer.accelerator 'gpu' is not valid here, no GPU is found: give --trainer.accelerator cpu, or auto"
    options = {
        name: value for name, value in given.items() if isinstance(value, str | int | float | dict) and value is not False
    }
    named = [name for name, value in options.items() if re.search(rf"\b{name}\b", message) or _stands_in(message, value)]
    named = named or [name for name in ("accelerator", "devices", "strategy") if name in options]
    shown = ", ".join(f"--trainer.{name} {options[name]!r}" for name in named)
    return f"the trainer options do not work together: {message}{f' (given: {shown}; correct it)' if shown else ''}"


def explain_refusal(error: ValueError) -> str | None:
    """One sentence where Lightning, or the constructor of a class that an option names, refused what it was given.

    Args:
        error: jsonargparse's, raised from the constructor's, or Lightning's own; for another there is None.
    """
    if _raised_in(error).startswith("lightning."):
        return f"the trainer options do not work with the data or the model: {error}"
    message, cause = str(error), error.__cause__
    refusals = (ValueError, TypeError, ImportError, MisconfigurationException, RepresenterError)
    if not message.startswith("Does not validate") or not isinstance(cause, refusals):
        return None
    class_path = re.search(r"class_path='([^']+)'", message)
    name = class_path[1] if class_path else "the class"
    return f"{name} does not take the arguments given ({cause}): correct its init_args"


def _raised_in(error: BaseException) -> str:
    """The module whose line raised an error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__")) if frames else ""


def _stands_in(message: str, value: object) -> bool:
    parts = list(value) if isinstance(value, dict | list | tuple) else [value]
    return any(isinstance(part, str) and repr(part) in message for part in parts)


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
        if prefix == "config":
            return missing_config(missing[1] or missing[2])
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
        expected = [kind for kind in _EXPECTED.findall(message[: given.end()]) if not kind.startswith("path but")]
        innermost = expected[-_innermost_alternatives(message) :]
        if prefix in _CLASS_EXAMPLES:  # "Not a valid subclass" stands where other types say what they expect
            innermost = [f"a class path such as {_CLASS_EXAMPLES[prefix]}"]
        value = _NESTED.sub(r"\1", given[1])
        words = " or ".join(dict.fromkeys(map(plain_type, innermost)))
        return f"{prefix} {value!r} is not valid: expected {words}{_near_value(prefix, value, innermost)}"
    return " ".join(message.split())


def _near_value(option: str, value: str, expected: list[str]) -> str:
    """The nearest of the words that an option takes, as the end of a sentence, or nothing."""
    if option == "trainer.logger" and (near := get_close_matches(value, LOGGERS, n=1)):
        return f"; a logger is given by its name as --logger {near[0]}"
    known = callbacks.__all__ if option == "trainer.callbacks" else []
    words = [word for kind in expected if kind == "bool" or "Literal[" in kind for word in choices(kind)]
    return did_you_mean(value, [*known, *words])


def _explain_unknown(match: dict[str, str | None], prefix: str, message: str, parser: ArgumentParser) -> str:
    if match["word"] is not None:
        return f"unexpected {match['word']!r}: options are written --name value"
    name = match["flag"] or match["key"] or match["path"] or ""
    full = f"{prefix}.{name}" if prefix else name
    known = {action.dest for action in parser._actions if not action.dest.endswith("help")}
    given = _CLASS.findall(message)
    for class_path in given[-1:]:  # the innermost
        known |= {f"{prefix}.{option}" for option in constructor_options(import_object(class_path))}
    for part in ("model", "data"):
        default = _default_class(parser, part)
        if default and (prefix.partition(".")[0] != part or not given or default in given):  # else those of another class
            known |= {f"{part}.{option}" for option in constructor_options(import_object(default))}
    return f"unknown option --{full}{near_options(full, known - {full})}"


def _default_class(parser: ArgumentParser, part: str) -> str | None:
    default = parser.get_defaults().get(part)
    return str(default.class_path) if default is not None and "class_path" in default else None


def _innermost_alternatives(message: str) -> int:
    """How many alternatives the innermost type had: jsonargparse lists them as Subtypes."""
    subtypes = re.findall(r"Subtypes: \[(.*)\]", message)
    return len(re.findall(r"<class|Literal|list\[|dict\[|tuple\[|Path", subtypes[-1])) if subtypes else 1


def plain_type(name: str) -> str:
    """The name of a type in words that people use."""
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", name)
    if name.startswith("dot import path"):
        return "a class path (package.module.Class)"
    return literal[1].replace("'", "") if literal else _PLAIN_TYPES.get(name, name)
