"""All options of a Trainer command with type, default and help, read from source files: for --help and for completion."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dropkey_cli.commands.defaults import default_classes
from dropkey_cli.commands.described import Parameter, described_parameters
from dropkey_cli.commands.own_options import OwnOption, own_options
from dropkey_cli.commands.tool_options import TOOLS
from dropkey_cli.errors import InputError

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
SECTIONS = ("run", "data", "model", "dropkey", "trainer")
LONGEST = 160
"""Letters of a text of Lightning's, as far as its first sentence is not longer."""
_WORDS = {"bool": "true|false", "str": "TEXT", "float": "NUMBER", "int": "INTEGER", "dict": "MAPPING", "list": "LIST"}
_WORDS |= {"tuple": "LIST", "PositiveInt": "INTEGER", "NonNegativeInt": "INTEGER", "NonNegativeFloat": "NUMBER"}
_WORDS |= {"PositiveFloat": "NUMBER", "None": "", "Iterable": "LIST", "Any": "VALUE"}

# What Lightning says of its options at length, or differently from what they are here: text, default, choices
TRAINER_TEXTS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "max_epochs": ("Passes over the training images; -1 for no limit, beside --trainer.max_steps.", "20", ()),
    "max_steps": ("Optimizer steps at most; -1 for no limit.", "-1", ()),
    "accelerator": ("Where to compute.", "auto", ("auto", "gpu", "cpu", "mps", "tpu")),
    "devices": ("How many GPUs or processes, or which, e.g. [0, 1]; auto for all.", "auto", ()),
    "strategy": ("How several processes share the work.", "auto", ("auto", "ddp", "fsdp2")),
    "precision": (
        "Of weights and arithmetic (default: bf16-mixed on a GPU that has bfloat16, else 32-true).",
        None,
        ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"),
    ),
    "accumulate_grad_batches": (
        "Batches per optimizer step: many images per step in little memory.",
        "1",
        (),
    ),
    "gradient_clip_val": ("Largest norm of the gradients; larger ones are scaled down to it.", None, ()),
    "log_every_n_steps": ("Steps between two rows of metrics.csv within an epoch.", "10", ()),
    "enable_model_summary": ("Print Lightning's table of layers.", "false", ()),
    "enable_progress_bar": ("A bar, or nothing at all (default: a bar in a terminal, else lines).", None, ()),
    "logger": ("Further loggers, as class paths; false for none. metrics.csv is always written.", None, ()),
    "profiler": ("Time the parts of the run.", None, ("simple", "advanced", "pytorch")),
    "gradient_clip_algorithm": ("What gradient_clip_val bounds (default: norm).", None, ("norm", "value")),
}


@dataclass(frozen=True)
class Option:
    """One option.

    Args:
        name: Without its dashes.
        value: What it takes, as one word for people: TEXT, INTEGER, true|false, a|b; empty for none.
        default: As people would type it; None where the help says it or there is none.
        help: What it does.
        choices: All the values it takes, or the usual ones.
    """

    name: str
    value: str
    default: str | None
    help: str
    choices: tuple[str, ...] = ()


def sections(command: str, words: list[str]) -> dict[str, list[Option]]:
    """All options by section: run, data, model, dropkey, trainer.

    Args:
        command: fit, validate, test or predict.
        words: The command line: --data and --model may name other classes.
    """
    model = class_options("model", command, words)
    dropkey = [option for option in model if option.name.startswith("model.dropkey.")]
    return {
        "run": [*_run_options(command), *(_own(option) for option in own_options(command) if command in option.commands)],
        "data": class_options("data", command, words),
        "model": [option for option in model if option not in dropkey],
        "dropkey": dropkey,
        "trainer": [_trainer(parameter, command) for parameter in described_parameters(TRAINER)],
    }


def tool_options(command: str) -> list[Option]:
    """The options of a command that is none of the Trainer's.

    Args:
        command: check, inspect, benchmark or export.
    """
    tool = TOOLS[command]
    nested = [_of_class(one, prefix) for prefix, class_path in tool.settings for one in described_parameters(class_path)]
    return [*map(_own, tool.options), *nested]


def class_options(part: str, command: str, words: list[str]) -> list[Option]:
    """The options of the model's or the data's class.

    Args:
        part: model or data.
        command: fit, validate, test or predict.
        words: The command line, on which --model or --data may name the class, or --data.root something else than a folder.

    Raises:
        InputError: If its source cannot be found.
    """
    pairs = [(*word.partition("="), after) for word, after in zip(words, [*words[1:], ""], strict=False)]
    given = [value if equals else after for name, equals, value, after in pairs if name == f"--{part}"]
    class_path = given[-1] if given else default_classes(command, words)[part]
    try:
        return [_of_class(parameter, part) for parameter in described_parameters(class_path)]
    except (AssertionError, OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"--{part} {class_path!r} has no source file where its name says; give package.module.Class, "
            f"or see --{part}.help {class_path}"
        ) from error


def _run_options(command: str) -> Iterator[Option]:
    yield Option("config", "FILE", None, "YAML file, or a shipped recipe's name; several are merged, the command line wins.")
    if command == "fit":
        yield Option("resume", "RUN", None, "Run folder, or last: go on with a run that was stopped, exactly where it was.")
    yield Option("ckpt_path", "FILE", None, "Checkpoint, run folder, or best or last of the newest run.", ("best", "last"))
    yield Option("seed_everything", "INTEGER", "0", "Seed of all random numbers; false for another one each time.")
    yield Option("print_config", "", None, "Print the whole configuration as YAML, and end.")


def _own(option: OwnOption) -> Option:
    kind = option.type.__name__ if isinstance(option.type, type) else str(option.type)
    if option.type is None:  # a flag
        return Option(option.name, "", None, option.help)
    default = None if option.default is None or "(default: " in option.help else _typed(option.default)
    return Option(option.name, value_word(kind), default, option.help, choices(kind))


def _of_class(parameter: Parameter, part: str) -> Option:
    kind, default = parameter.type, parameter.default
    is_object = default is not None and default.endswith("()")
    shown = None if default in (None, "None") or is_object else _typed(ast.literal_eval(default))
    return Option(f"{part}.{parameter.name}", value_word(kind), shown, parameter.help, choices(kind))


def _trainer(parameter: Parameter, command: str) -> Option:
    name, kind = f"trainer.{parameter.name}", parameter.type
    if parameter.name in TRAINER_TEXTS:
        text, default, usual = TRAINER_TEXTS[parameter.name]
        default = "1" if parameter.name == "devices" and command != "fit" else default
        return Option(name, "|".join(usual) or value_word(kind), default, text, usual or choices(kind))
    default = None if parameter.default in (None, "None") else _typed(ast.literal_eval(parameter.default))
    return Option(name, value_word(kind), default, _first_sentences(parameter.help), choices(kind))


def _first_sentences(text: str) -> str:
    """The beginning of a text that Lightning wrote for its web pages, with roles, double quotes and the default once more."""
    plain = re.sub(r":\w+:`~[^`]*?([^`.]+)`", r"\1", text)
    plain = re.sub(r":\w+:`([^`]*)`", r"\1", plain).replace("``", "").replace("`", "")
    kept = ""
    for sentence in re.split(r"(?<=[.)]) (?=[A-Z])", re.sub(r"\s*Default: .*?\.?(?=$| [A-Z])", "", plain)):
        if kept and len(kept) + len(sentence) > LONGEST:
            break
        kept += f" {sentence}" if kept else sentence
    return kept


def choices(kind: str) -> tuple[str, ...]:
    """The words that an annotation names.

    Args:
        kind: The annotation as text.
    """
    found: list[str] = []
    for node in ast.walk(_parsed(kind)):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).rpartition(".")[2] == "Literal":
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            found += [str(item.value) for item in items if isinstance(item, ast.Constant)]
    return ("true", "false") if kind == "bool" else tuple(found)


def value_word(kind: str) -> str:
    """What an option of a type takes, as one word for people."""
    words = [word for member in _members(_parsed(kind)) for word in _words_of(member)]
    words = [word for word in words if word != "TEXT"] if "LIST" in words else words  # a list may be a text, too
    return "|".join(dict.fromkeys(filter(None, words))) or "VALUE"


def _words_of(member: ast.expr) -> list[str]:
    head = member.value if isinstance(member, ast.Subscript) else member
    name = ast.unparse(head).rpartition(".")[2]
    return list(choices(ast.unparse(member))) if name == "Literal" else [_WORDS.get(name, "")]


def _members(kind: ast.expr) -> list[ast.expr]:
    """The alternatives of a union."""
    if isinstance(kind, ast.BinOp):
        return [*_members(kind.left), *_members(kind.right)]
    if isinstance(kind, ast.Subscript) and ast.unparse(kind.value).rpartition(".")[2] in ("Union", "Optional"):
        inner = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        return [member for each in inner for member in _members(each)]
    return [kind]


def _parsed(kind: str) -> ast.expr:
    return ast.parse(kind, mode="eval").body


def _typed(value: Any) -> str:  # noqa: ANN401 - a default
    """A value as one types it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(_typed, value))}]" if isinstance(value, list | tuple) else str(value)
