"""``dropkey models [PATTERN ...]``: the networks there are, their weights, and how many of their layers take DropKey."""

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dropkey_cli.catalog import Catalog, CatalogEntry, read_catalog
from dropkey_cli.errors import InputError, did_you_mean

DESCRIPTION = "The networks of timm and dropkey: how many attention layers take DropKey, their size, their weights."
PATTERN = """\
A name, a part of names, or a pattern with * ? [...] (quote it for the shell). Default: all. With a dot, weights are listed one
by one: 'vit_base_patch16_224.*'.
"""
COLUMNS = """\
Parameters count timm's default classifier. Input size and licence are those of the weights that are named; +2 means two more.
dropkey inspect NAME shows the attention layers.
"""


def models(words: list[str]) -> None:
    """Print the models that match, as a table or as JSON.

    Args:
        words: The words after ``dropkey models``.

    Raises:
        InputError: If an option is wrong or a pattern matches nothing.
    """
    options = _parser().parse_intermixed_args(words)
    catalog = read_catalog()
    found = describe(find_names(options.patterns, catalog), catalog)
    print(json.dumps([asdict(model) for model in found], indent=2) if options.json else _render(found))


def find_names(patterns: list[str], catalog: Catalog) -> list[str]:
    """The names that match any pattern, each once; all architectures without a pattern.

    Raises:
        InputError: If a pattern matches nothing.
    """
    found = [] if patterns else _known_names(catalog, with_tags=False)
    for pattern in patterns:
        if ":" in pattern:
            raise InputError(f"{pattern!r}: dropkey models lists what timm and dropkey have; write dropkey inspect {pattern}")
        known = _known_names(catalog, with_tags="." in pattern)
        matching = [pattern] if pattern in known else [n for n in known if fnmatchcase(n, pattern) or pattern in n]
        if not matching:
            near = did_you_mean(pattern.strip("*"), known) or ": dropkey models lists all"
            raise InputError(f"{pattern!r} matches no model that timm {version('timm')} or dropkey has{near}")
        found += matching
    return list(dict.fromkeys(found))


def describe(names: list[str], catalog: Catalog) -> list[CatalogEntry]:
    """What the table says about models; timm is asked for single weights, and for everything if it is not the table's."""
    if catalog.is_of_installed_timm and catalog.entries.keys() >= set(names):
        return [catalog.entries[name] for name in names]
    from dropkey_cli.models.census import entry_of, measure

    architectures = {name: name.partition(".")[0] for name in names}
    missing = [name for name in dict.fromkeys(architectures.values()) if name not in catalog.entries]
    if missing:
        print(f"dropkey's table lacks {len(missing)} of these: measuring, about a second each", file=sys.stderr)
    entries = catalog.entries | {name: measure(name) for name in missing}
    measured = [(name, entries[architecture]) for name, architecture in architectures.items()]
    return [entry_of(name, entry.parameters, entry.attention_layers, entry.reason) for name, entry in measured]


def _known_names(catalog: Catalog, *, with_tags: bool) -> list[str]:
    """All architectures or, with tags, all weights; the latter, or a table of another timm, take timm's import."""
    if catalog.is_of_installed_timm and not with_tags:
        return list(catalog.entries)
    import timm

    import dropkey_cli.models  # noqa: F401 - registers our networks with timm

    return timm.list_pretrained() if with_tags else timm.list_models()


def _render(found: list[CatalogEntry]) -> str:
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


def _table(found: list[CatalogEntry], notes: dict[str, str], *, terminal_width: int) -> Table:
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


def _weights(model: CatalogEntry) -> str:
    if not model.pretrained:
        return "none"
    more = f" +{len(model.pretrained) - 1}" if len(model.pretrained) > 1 else ""
    return f"{model.pretrained[0]}{more} ({model.licence or 'not stated'})"


class _Parser(ArgumentParser):
    """A parser whose errors are one sentence; config_errors has one for more options, which takes Lightning two seconds."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; give names or patterns of models, and --json for JSON")


def _parser() -> ArgumentParser:
    parser = _Parser(prog="dropkey models", description=DESCRIPTION, epilog=COLUMNS, allow_abbrev=False)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help=PATTERN)
    parser.add_argument("--json", action="store_true", help="Print a list of objects instead of a table.")
    return parser
