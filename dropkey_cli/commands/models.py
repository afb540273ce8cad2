"""``dropkey models [PATTERN ...]``: the networks there are, their weights, and how many of their layers take DropKey."""

import json
import sys
from argparse import ArgumentParser
from collections import defaultdict
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import NoReturn

import timm
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from timm.models import PretrainedCfg

from dropkey_cli.errors import InputError, did_you_mean
from dropkey_cli.models.catalog import CatalogEntry, measure, read_catalog

DESCRIPTION = "The networks of timm and dropkey: how many attention layers take DropKey, their size, their weights."
PATTERN = """\
A name, a part of names, or a pattern with * ? [...] (quote it for the shell). Default: all. With a dot, weights are listed one
by one: 'vit_base_patch16_224.*'.
"""
COLUMNS = """\
Parameters count timm's default classifier. Input size and licence are those of the weights that are named; +2 means two more.
dropkey inspect NAME shows the attention layers.
"""


@dataclass(frozen=True)
class Model:
    """One line of the list.

    Args:
        name: What ``--model.model_name`` takes: an architecture, or an architecture and the tag of weights.
        parameters: Their number; None if the architecture could not be measured.
        input_size: Channels, height and width of the images.
        pretrained: Tags of the weights, the default first; empty if there are none.
        licence: Of the weights named first; None if timm does not tell it.
        attention_layers: How many take DropKey by default.
        reason: Why none does; None if some do.
    """

    name: str
    parameters: int | None
    input_size: tuple[int, int, int]
    pretrained: list[str]
    licence: str | None
    attention_layers: int
    reason: str | None


def models(words: list[str]) -> None:
    """Print the models that match, as a table or as JSON.

    Args:
        words: The words after ``dropkey models``.

    Raises:
        InputError: If an option is wrong or a pattern matches nothing.
    """
    options = _parser().parse_intermixed_args(words)
    found = describe(find_names(options.patterns))
    print(json.dumps([asdict(model) for model in found], indent=2) if options.json else _render(found))


def find_names(patterns: list[str]) -> list[str]:
    """The names that match any pattern, each once; all architectures without a pattern.

    Raises:
        InputError: If a pattern matches nothing.
    """
    found: list[str] = [] if patterns else timm.list_models()
    for pattern in patterns:
        known = timm.list_pretrained() if "." in pattern else timm.list_models()
        matching = [pattern] if pattern in known else [n for n in known if fnmatchcase(n, pattern) or pattern in n]
        if not matching:
            near = did_you_mean(pattern, known) or ": dropkey models lists all"
            raise InputError(f"{pattern!r} matches no model that timm {timm.__version__} has{near}")
        found += matching
    return list(dict.fromkeys(found))


def describe(names: list[str]) -> list[Model]:
    """What timm and the table say about models; architectures that the table lacks are measured now."""
    entries = _entries([_architecture(name) for name in names])
    tags = defaultdict(list)
    for name in timm.list_pretrained():
        tags[_architecture(name)].append(name.partition(".")[2])
    return [_describe(name, entries[_architecture(name)], tags[_architecture(name)]) for name in names]


def _describe(name: str, entry: CatalogEntry, tags: list[str]) -> Model:
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    # The default first; of a name with a tag, only that one
    tags = [name.partition(".")[2]] if "." in name else sorted(tags, key=lambda tag: tag != config.tag)
    licence = config.license if tags else None
    return Model(name, entry.parameters, config.input_size, tags, licence, entry.attention_layers, entry.reason or None)


def _entries(architectures: list[str]) -> dict[str, CatalogEntry]:
    entries = read_catalog().entries
    missing = [name for name in dict.fromkeys(architectures) if name not in entries]
    if missing:
        print(f"dropkey's table lacks {len(missing)} of these: measuring, about a second each", file=sys.stderr)
    return entries | {name: measure(name) for name in missing}


def _architecture(name: str) -> str:
    return name.partition(".")[0]


def _render(found: list[Model]) -> str:
    """The table and its notes as text; in a file or pipe, as wide as they need to be."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    # Notes, because a reason is longer than a cell, and families share it
    notes = {reason: f"[{i}]" for i, reason in enumerate(dict.fromkeys(m.reason for m in found if m.reason), start=1)}
    with console.capture() as text:
        console.print(_table(found, notes, terminal_width=console.width))
        console.print()
        for reason, note in notes.items():
            console.print(f"{note} {reason}")
    return text.get().rstrip("\n")


def _table(found: list[Model], notes: dict[str, str], *, terminal_width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    # In a narrow terminal the weights are broken before the names, which people copy
    longest = max(len(model.name) for model in found)
    table.add_column("model", overflow="fold", width=min(longest, max(20, terminal_width - 52)))
    table.add_column("attention\nlayers", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("input\nsize", no_wrap=True)
    table.add_column("pretrained weights (licence)", overflow="fold")
    for model in found:
        layers = f"{model.attention_layers} {notes[model.reason]}" if model.reason else str(model.attention_layers)
        parameters = "–" if model.parameters is None else f"{model.parameters / 1e6:,.1f} M"
        _, height, width = model.input_size
        size = f"{height}" if height == width else f"{height} × {width}"
        table.add_row(model.name, layers, parameters, size, _weights(model))
    return table


def _weights(model: Model) -> str:
    if not model.pretrained:
        return "none"
    more = f" +{len(model.pretrained) - 1}" if len(model.pretrained) > 1 else ""
    return f"{model.pretrained[0] or 'default'}{more} ({model.licence or 'not stated'})"


class _Parser(ArgumentParser):
    """A parser whose errors are one sentence; config_errors has one for more options, which takes Lightning two seconds."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; give names or patterns of models, and --json for JSON")


def _parser() -> ArgumentParser:
    parser = _Parser(prog="dropkey models", description=DESCRIPTION, epilog=COLUMNS, allow_abbrev=False)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help=PATTERN)
    parser.add_argument("--json", action="store_true", help="Print a list of objects instead of a table.")
    return parser
