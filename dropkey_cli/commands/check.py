"""``dropkey check ROOT``: which images cannot be read, lie in two splits or have two labels, and what is converted."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from functools import partial
from statistics import median
from typing import Any, NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dropkey_cli.commands.defaults import NAMED_DATA, TABLE_DATA, data_class
from dropkey_cli.commands.tool_options import TOOLS
from dropkey_cli.data.check import Image, Report, check_folder, check_table
from dropkey_cli.data.class_folders import LAYOUT
from dropkey_cli.data.module import default_num_workers
from dropkey_cli.data.table_file import FORMATS
from dropkey_cli.data.table_rows import TableOptions
from dropkey_cli.errors import InputError

MOST_CLASSES = 30
TABLE_OPTIONS = [field.name for field in fields(TableOptions)]


def check(words: list[str]) -> bool:
    """Print what is wrong with a data set, and what is converted on reading.

    Args:
        words: The words after ``dropkey check``.

    Returns:
        Whether nothing is wrong.

    Raises:
        InputError: If an option is wrong, or the folders are no class folders.
    """
    options = _parser().parse_args(words)
    if options.root and options.data_root:
        raise InputError(f"ROOT is given twice, {options.root!r} and {options.data_root!r}: leave one out")
    if not (options.root or options.data_root):
        raise InputError(f"no folder is given; {LAYOUT}; write dropkey check ROOT")
    num_workers = default_num_workers() if options.num_workers is None else options.num_workers
    if num_workers < 0:
        raise InputError(f"num_workers is {num_workers!r}; expected 0 or more; give e.g. --num_workers 4")
    if options.channels < 1:
        raise InputError(f"channels is {options.channels!r}; expected 1 or more; give e.g. --channels 3")
    console = Console(stderr=True)
    progress = partial(track, console=console, transient=True, disable=not console.is_terminal)
    how: dict[str, Any] = {"num_workers": num_workers, "channels": options.channels, "progress": progress}
    report = _check(options.root or options.data_root, options, **how)
    print(_to_json(report) if options.json else "\n".join(_lines(report)))
    return report.is_clean


def _check(root: str, options: Namespace, **how: Any) -> Report:  # noqa: ANN401 - those of check_folder
    """What is found in folders or, if the root's name says so, in a table."""
    given = {name: getattr(options, name) for name in TABLE_OPTIONS if getattr(options, name) is not None}
    if data_class(root) == TABLE_DATA:
        return check_table(root, TableOptions(**given), **how)
    if given:
        name = next(iter(given))
        raise InputError(f"--data.{name} is for a table, {FORMATS}, and {root!r} is none; leave it out, or check the path")
    if data_class(root) == NAMED_DATA:
        raise InputError(f"{root!r} is a data set by name; dropkey check reads folders and tables; give one of them")
    return check_folder(root, **how)


def _to_json(report: Report) -> str:
    return json.dumps({"clean": report.is_clean, "missing": report.missing, **_plain(asdict(report))}, indent=2)


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a report holds
    """With objects in the place of named tuples, which JSON would have as lists."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _lines(report: Report) -> Iterator[str]:
    yield _table(report.images) if len(next(iter(report.images.values()))) <= MOST_CLASSES else _summary(report.images)
    for split, names in report.missing.items():
        yield f"{split} has no image of {len(names)} class(es): {', '.join(map(repr, names))}"
    if report.notes or report.repeated:
        yield "\nread all the same:"
        yield from (f"  {note.num_files:>6} {note.text}, e.g. {shown(note.example)}" for note in report.notes.values())
    if report.repeated:
        yield f"  {report.repeated:>6} with the content of another file of their class and split"
    if report.unreadable:
        yield f"\ncannot be read ({len(report.unreadable)}):"
        yield from (f"  {shown(path)}: {reason}" for path, reason in report.unreadable)
    yield from _groups("the same image in two splits", report.in_two_splits)
    yield from _groups("the same image with two labels", report.two_labels)
    yield "\n" + _verdict(report)


def _groups(title: str, groups: list[list[Image]]) -> Iterator[str]:
    if groups:
        yield f"\n{title} ({len(groups)}):"
        yield from ("  " + " = ".join(shown(image.path) for image in group) for group in groups)


def _verdict(report: Report) -> str:
    """The last line: what to do."""
    todo = []
    if report.unreadable:
        todo.append("repair or remove what cannot be read, or train with --data.on_error skip, which leaves it out")
    if report.in_two_splits:
        todo.append("keep each image in one split only: what was trained on says nothing about new images")
    if report.two_labels:
        todo.append("keep each image in one class only")
    if todo:
        sentence = "; ".join(todo)
        return f"{sentence[0].upper()}{sentence[1:]}."
    return f"Nothing is wrong: all {sum(map(sum, (counts.values() for counts in report.images.values())))} images can be read."


def _table(images: dict[str, dict[str, int]]) -> str:
    """One row per class, one column per split."""
    rows = {name: [counts[name] for counts in images.values()] for name in next(iter(images.values()))}
    rows[f"{len(rows)} classes"] = [sum(counts.values()) for counts in images.values()]
    return _render("class", list(images), rows)


def _summary(images: dict[str, dict[str, int]]) -> str:
    """Of many classes: how many images the scarcest, the median and the largest class have."""
    figures: dict[str, Callable[[Iterable[int]], float]] = {
        "scarcest class": min,
        "median class": median,
        "largest class": max,
        "all classes": sum,
    }
    rows = {name: [int(figure(counts.values())) for counts in images.values()] for name, figure in figures.items()}
    total = {name: sum(counts[name] for counts in images.values()) for name in next(iter(images.values()))}
    scarce = sorted(total, key=lambda name: total[name])[:5]
    listed = ", ".join(f"{shown(name)} ({total[name]})" for name in scarce)
    return f"{_render(f'{len(total)} classes', list(images), rows)}\nscarcest of all: {listed}"


def _render(title: str, splits: list[str], rows: dict[str, list[int]]) -> str:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(title, overflow="fold")
    for split in splits:
        table.add_column(split, justify="right", no_wrap=True)
    for name, numbers in rows.items():
        table.add_row(shown(name), *map(str, numbers))
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    with console.capture() as text:
        console.print(table)
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def shown(name: str) -> str:
    """A file's name as it is or, if it would break the line or cannot be encoded, quoted and escaped."""
    return name if name.isprintable() else ascii(name)


class _Parser(ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; give the folder: dropkey check ROOT, with --json or --num_workers N")


def _parser() -> ArgumentParser:
    parser = _Parser(prog="dropkey check", add_help=False, allow_abbrev=False)
    parser.add_argument("root", nargs="?")
    for option in TOOLS["check"].options:
        how = {"action": "store_true"} if option.type is None else {"type": option.type, "default": option.default}
        parser.add_argument(f"--{option.name}", dest=option.name.replace(".", "_"), **how)
    for name in TABLE_OPTIONS:
        parser.add_argument(f"--data.{name}", dest=name)
    return parser
