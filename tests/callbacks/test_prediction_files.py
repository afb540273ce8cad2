import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from dropkey_cli.callbacks import prediction_files
from dropkey_cli.callbacks.prediction_files import FORMATS
from dropkey_cli.callbacks.prediction_table import Table
from dropkey_cli.errors import InputError

ODD = ["a b,c.png", "line\nbreak\r.png", "'quoted\" 猫é.png", "", "tab\t.png"]


def tables(count: int = 3, size: int = 5) -> list[Table]:
    generator = np.random.default_rng(0)
    made: list[Table] = []
    for _ in range(count):
        numbers = (generator.random((2, size)) ** 9).astype(np.float32)
        numbers[1, 0] = np.nan
        made.append({"path": ODD[:size], "probability": numbers[0], "error": [""] * size, "std": numbers[1]})
    return made


def write(path: Path, given: list[Table]) -> None:
    file = FORMATS[path.suffix](path)
    for table in given:
        file.write(table)
    file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows, the missing as None, numbers as float32."""
    if path.suffix == ".parquet":
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    elif path.suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    else:
        with path.open(newline="", encoding="utf-8") as file:
            found = [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]
    for row in found:
        for name in ("probability", "std"):
            row[name] = None if row[name] is None else np.float32(row[name]).item()
    return found


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_the_same_rows(suffix: str, tmp_path: Path) -> None:
    given = tables()
    write(tmp_path / f"p{suffix}", given)
    expected = [
        {
            "path": path or None,
            "probability": probability,
            "error": None,
            "std": None if np.isnan(std) else std,
        }
        for table in given
        for path, probability, std in zip(
            table["path"], np.asarray(table["probability"]).tolist(), np.asarray(table["std"]).tolist(), strict=True
        )
    ]
    assert read(tmp_path / f"p{suffix}") == expected


def test_json_has_numbers_and_null(tmp_path: Path) -> None:
    table: Table = {
        "path": ["猫.png"],
        "probability": np.array([0.1], np.float32),
        "error": [""],
        "std": np.array([np.nan], np.float32),
    }
    write(tmp_path / "p.jsonl", [table])
    line = '{"path": "猫.png", "probability": 0.1, "error": null, "std": null}\n'
    assert (tmp_path / "p.jsonl").read_bytes() == line.encode()


def test_parquet_has_types_and_groups_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_files, "CELLS_PER_GROUP", 30)
    write(tmp_path / "p.parquet", tables(count=5))  # 5 rows × 4 columns each
    with parquet.ParquetFile(tmp_path / "p.parquet") as file:
        assert [str(field.type) for field in file.schema_arrow] == ["string", "float", "string", "float"]
        groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    assert groups == [10, 10, 5]


@pytest.mark.parametrize("suffix", FORMATS)
def test_file_names_that_are_no_utf8(suffix: str, tmp_path: Path) -> None:
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    write(tmp_path / f"p{suffix}", [{"path": [name], "error": [""]}])
    if suffix == ".csv":  # as the bytes that they are
        assert (tmp_path / "p.csv").read_bytes() == b"path,error\r\n\xff.png,\r\n"
    elif suffix == ".jsonl":  # as Python's json reads it back
        assert json.loads((tmp_path / "p.jsonl").read_text(encoding="utf-8"))["path"] == name
    else:  # parquet holds UTF-8 only
        assert parquet.read_table(tmp_path / "p.parquet").to_pylist() == [{"path": "\\udcff.png", "error": None}]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"--output that ends in \.parquet needs pyarrow: pip install 'dropkey\[parquet\]'"):
        FORMATS[".parquet"](tmp_path / "p.parquet")
    assert not list(tmp_path.iterdir())
