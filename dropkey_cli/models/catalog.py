"""How many attention layers of each architecture take DropKey: the shipped table, and the measurement behind it.

The table is catalog.csv. After an upgrade of timm, a change of patching/known.py or a new network, measure it anew
(some ten minutes on two cores; with patterns, only the lines of the architectures that match):

    python -m dropkey_cli.models.catalog
    python -m dropkey_cli.models.catalog 't2t_vit_*' 'ceit_*'
"""

import csv
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import timm
import torch

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.discovery import AttentionCall, image_inputs, record_attention
from dropkey_cli.patching.selection import NoAttentionError, select_layers

TABLE = Path(__file__).with_name("catalog.csv")


@dataclass(frozen=True)
class CatalogEntry:
    """What DropKey finds in an architecture.

    Args:
        name: timm's name, without the weights' tag.
        parameters: Their number, with timm's default classifier; None if the architecture could not be measured.
        attention_layers: How many take DropKey by default.
        reason: Why none does; empty if some do.
    """

    name: str
    parameters: int | None
    attention_layers: int
    reason: str


@dataclass(frozen=True)
class Catalog:
    """The shipped table: its entries by name, and the timm version they were measured with."""

    timm_version: str
    entries: dict[str, CatalogEntry]


def read_catalog() -> Catalog:
    """The shipped table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        timm_version = file.readline().split()[-1]
        rows = list(csv.DictReader(file))
    entries = [
        CatalogEntry(
            row["name"], int(row["parameters"]) if row["parameters"] else None, int(row["attention_layers"]), row["reason"]
        )
        for row in rows
    ]
    return Catalog(timm_version, {entry.name: entry for entry in entries})


def measure(name: str) -> CatalogEntry:
    """The entry of any architecture that timm can build, in about a second. One that DropKey refuses has its reason."""
    try:
        parameters, calls = record(name)
    except InputError as error:
        return CatalogEntry(name, None, 0, str(error))
    return summarise(name, parameters, calls)


def record(name: str) -> tuple[int, list[AttentionCall]]:
    """Build an architecture without weights and run it once: its number of parameters and its attention calls.

    Raises:
        InputError: If it cannot be built or run.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(name)
    except Exception as error:  # each constructor has its own kinds
        raise InputError(f"timm cannot build {name} without weights: {type(error).__name__}: {error}") from error
    return sum(parameter.numel() for parameter in model.parameters()), record_attention(model, image_inputs(model))


def summarise(name: str, parameters: int, calls: list[AttentionCall]) -> CatalogEntry:
    """The entry of an architecture that was recorded."""
    try:
        selected = select_layers(calls, DropKeySettings(), model_name=name).selected
    except NoAttentionError as error:
        phrases = [f"{layer.class_name.rpartition('.')[2]} {layer.why}" for layer in error.left_alone]
        return CatalogEntry(name, parameters, 0, "; ".join(phrases) or "no attention")
    except InputError as error:  # an unknown class attends
        return CatalogEntry(name, parameters, 0, str(error))
    return CatalogEntry(name, parameters, len(selected), "")


def write_catalog(patterns: list[str]) -> int:
    """Measure architectures, in one process per core, and write their lines into the table.

    Args:
        patterns: Which ones (``*``, ``?``, ``[…]``); none for all, which also removes lines of architectures that are gone.

    Returns:
        The number of architectures measured.

    Raises:
        InputError: If only some are asked for and the others were measured with another timm.
    """
    kept = read_catalog() if patterns else Catalog(timm.__version__, {})
    if kept.timm_version != timm.__version__:
        raise InputError(
            f"{TABLE.name} is of timm {kept.timm_version}, this is {timm.__version__}: measure all, without a pattern"
        )
    names = timm.list_models(patterns)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        entries = kept.entries | {entry.name: entry for entry in pool.map(measure, names, chunksize=8)}
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# Measured by python -m dropkey_cli.models.catalog with timm {timm.__version__}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(CatalogEntry))
        writer.writerows(astuple(entries[name]) for name in sorted(entries))
    return len(names)


if __name__ == "__main__":
    print(f"{write_catalog(sys.argv[1:])} architectures measured; the table is {TABLE}")
