"""The shipped table of all networks, catalog.csv: readable without torch and timm, whose import takes seconds.

dropkey_cli/models/census.py fills it.
"""

import csv
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path

TABLE = Path(__file__).with_name("catalog.csv")


@dataclass(frozen=True)
class CatalogEntry:
    """One line of the table.

    Args:
        name: What ``--model.model_name`` takes: an architecture, or an architecture and the tag of weights.
        parameters: Their number, with timm's default classifier; None if the architecture could not be measured.
        input_size: Channels, height and width of the images.
        pretrained: Tags of the weights, the default first; empty if there are none.
        licence: Of the weights named first; None if timm does not tell it.
        attention_layers: How many take DropKey by default.
        reason: Why none does; None if some do.
    """

    name: str
    parameters: int | None
    input_size: tuple[int, int, int]
    pretrained: tuple[str, ...]
    licence: str | None
    attention_layers: int
    reason: str | None


@dataclass(frozen=True)
class Catalog:
    """A table: its entries by name, in timm's order, and the timm version that they are of."""

    timm_version: str
    entries: dict[str, CatalogEntry]

    @property
    def is_of_installed_timm(self) -> bool:
        """Whether timm, if it were imported, would have these networks and weights."""
        return self.timm_version == version("timm")


def read_catalog() -> Catalog:
    """The shipped table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        timm_version = file.readline().split()[-1]
        entries = [_entry(row) for row in csv.DictReader(file)]
    return Catalog(timm_version, {entry.name: entry for entry in entries})


def write_catalog(catalog: Catalog) -> None:
    """Replace the shipped table."""
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# Measured by python -m dropkey_cli.models.census with timm {catalog.timm_version}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(CatalogEntry))
        writer.writerows(_row(entry) for entry in catalog.entries.values())


def _entry(row: dict[str, str]) -> CatalogEntry:
    channels, height, width = map(int, row["input_size"].split())
    return CatalogEntry(
        name=row["name"],
        parameters=int(row["parameters"]) if row["parameters"] else None,
        input_size=(channels, height, width),
        pretrained=tuple(row["pretrained"].split()),
        licence=row["licence"] or None,
        attention_layers=int(row["attention_layers"]),
        reason=row["reason"] or None,
    )


def _row(entry: CatalogEntry) -> list[object]:
    """The fields as csv writes them: None as nothing, several values with a space between them."""
    values = [getattr(entry, field.name) for field in fields(entry)]
    return [" ".join(map(str, value)) if isinstance(value, tuple) else value for value in values]
