import csv
from pathlib import Path

import pytest

from dropkey_cli import catalog
from dropkey_cli.catalog import TABLE, Catalog, CatalogEntry, read_catalog, write_catalog


def test_a_table_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        CatalogEntry("vit_10", 86_567_656, (3, 224, 192), ("b_in1k", "a_in21k"), "apache-2.0", 12, None),
        CatalogEntry("vit_9", None, (1, 28, 28), (), None, 0, 'no layer: "Pool", a head; give include, e.g. "*.pool"'),
    ]
    written = Catalog("1.2.3.dev0", {entry.name: entry for entry in entries})
    monkeypatch.setattr(catalog, "TABLE", tmp_path / "catalog.csv")
    write_catalog(written)
    assert read_catalog() == written
    assert list(read_catalog().entries) == ["vit_10", "vit_9"]


def test_the_shipped_table_has_one_line_of_plain_csv_per_network() -> None:
    comment, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    shipped = read_catalog()
    assert comment.endswith(f" with timm {shipped.timm_version}")
    rows = list(csv.DictReader(lines))
    assert [row["name"] for row in rows] == list(shipped.entries)
    (vit,) = (row for row in rows if row["name"] == "vit_tiny_patch16_224")
    assert (vit["input_size"], vit["pretrained"]) == ("3 224 224", "augreg_in21k_ft_in1k augreg_in21k")
    assert TABLE.stat().st_size < 250_000


@pytest.mark.parametrize(("installed", "same"), [("1.0.31", True), ("1.0.32", False), ("1.0.31.dev0", False)])
def test_a_table_is_of_the_installed_timm_or_of_another(installed: str, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "version", {"timm": installed}.__getitem__)
    assert Catalog("1.0.31", {}).is_of_installed_timm is same
