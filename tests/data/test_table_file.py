import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from dropkey_cli.data.table_file import Columns, Row, open_table
from dropkey_cli.errors import InputError

RECORDS = [
    {"path": "a,b.jpg", "label": "cat", "note": ""},
    {"path": 'ä "1".jpg', "label": "big dog", "note": "two\nlines"},
    {"path": "c.jpg", "label": "7", "note": "x"},
]


def write_csv(file: Path, delimiter: str, encoding: str = "utf-8") -> None:
    with file.open("w", newline="", encoding=encoding) as opened:
        writer = csv.DictWriter(opened, ["path", "label", "note"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(RECORDS)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "comma.csv": lambda file: write_csv(file, ","),
    "semicolon.csv": lambda file: write_csv(file, ";"),
    "tab.csv": lambda file: write_csv(file, "\t"),
    "table.TSV": lambda file: write_csv(file, "\t"),
    "excel.csv": lambda file: write_csv(file, ",", "utf-8-sig"),
    "lines.jsonl": lambda file: file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS)),
    "rows.parquet": lambda file: parquet.write_table(pyarrow.Table.from_pylist(RECORDS), file, row_group_size=2),
}


def read(file: Path, **columns: str | None) -> list[Row]:
    table = open_table(file)
    return list(table.rows(table.find_columns(**{"path": None, "label": None, "split": None, **columns})))


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_cells(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    rows = read(tmp_path / name)
    assert [(row.path, row.label, row.split, row.fault) for row in rows] == [
        (record["path"], record["label"], None, "") for record in RECORDS
    ]
    first = 1 if name in ("lines.jsonl", "rows.parquet") else 2
    assert rows[0].line == first
    assert rows[2].line == first + (2 if first == 1 else 3)  # a cell of two lines lies before it


def test_parquet_is_read_in_batches_with_running_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dropkey_cli.data.table_file._ROWS_AT_ONCE", 3)
    table = pyarrow.table({"label": list(range(10)), "more": [None] * 10, "path": [f"{n}.png" for n in range(10)]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == [Row(n + 1, f"{n}.png", n) for n in range(10)]


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("path,label", ("path", "label", None)),
        ("Label,File Name", ("File Name", "Label", None)),
        ("image_path,class-name,Split,other", ("image_path", "class-name", "Split")),
        ("id,file_name,category", ("file_name", "category", None)),
        (" filename , target ", ("filename", "target", None)),
    ],
)
def test_columns_are_found_by_their_names(header: str, columns: tuple[str, str, str | None], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n")
    table = open_table(tmp_path / "t.csv")
    assert table.find_columns(None, None, None) == Columns(*columns)
    assert list(table.rows(Columns(*columns))) == []


def test_given_columns_win(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,url,label,breed,fold\nx,a.png,dog,pug,val\n")
    assert read(tmp_path / "t.csv", path="url", label="breed", split="fold") == [Row(2, "a.png", "pug", "val")]


@pytest.mark.parametrize(
    ("header", "given", "message"),
    [
        ("a,label", {}, r"t\.csv' has no column that is called 'path' or the like, its columns are 'a', 'label'; give"),
        ("path,x", {}, r"no column that is called 'label' .* 'path', 'x'; give --data\.label_column NAME, or a"),
        ("", {}, r"no column that is called 'path'"),
        ("path,file,label", {}, r"2 columns that may be meant: 'path', 'file'; expected one; give --data\.path_column path$"),
        ("path,label,class", {}, r"2 columns that may be meant: 'label', 'class'; .* --data\.label_column label$"),
        ("path,label", {"label": "lable"}, r"label_column is 'lable', but the columns .* 'path', 'label'; .*you mean 'label'"),
        ("path,label", {"split": "fold"}, r"split_column is 'fold', but the columns"),
    ],
)  # fmt: skip
def test_columns_that_are_not_clear_are_refused_with_those_there_are(
    header: str, given: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "t.csv", **given)


def test_rows_of_another_length_and_lines_that_are_no_objects_say_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\na.png\n\nb, 1.png,dog\nc.png, cat\n")
    assert read(tmp_path / "t.csv") == [
        Row(2, fault="has 1 cells, the first line 2"),
        Row(4, fault="has 3 cells, the first line 2"),
        Row(5, "c.png", "cat"),
    ]
    (tmp_path / "t.jsonl").write_text('{"path": "a", "label": ["x"]}\n[1]\n\n{"path": \n{"label": null}\n')
    assert read(tmp_path / "t.jsonl") == [
        Row(1, "a", ["x"]),
        Row(2, fault="is no JSON object"),
        Row(4, fault="is no JSON object"),
        Row(5, None, None),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", None, r"t\.csv' cannot be read \(No such file or directory\); check the path"),
        ("t.csv", b"path,label\nB\xe4r.png,x\n", r"is no UTF-8 text \(byte 12: invalid continuation byte\); save it as UTF-8"),
        ("t.csv", "path,label\n".encode("utf-16"), r"is no UTF-8 text \(byte 0"),
        ("t.csv", b'path,label\n"' + b"x" * 200_000, r"is damaged \(field larger than field limit \(131072\)\)"),
        ("t.jsonl", b"\xff", r"is no UTF-8 text"),
        ("t.parquet", b"PAR1", r"is damaged \(.*\); expected a parquet file"),
        ("t.parquet", b"", r"is damaged \(.*\); expected a parquet file"),
        (
            "t.json",
            b"[]",
            r"t\.json' is no table that dropkey reads; expected \*\.csv, \*\.tsv, \*\.jsonl or \*\.parquet; save",
        ),
    ],
)
def test_files_that_are_no_table_are_refused(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"needs pyarrow, which is not installed; pip install 'dropkey\[parquet\]'"):
        open_table(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("labels", "expected"), [([["a"], []], True), ([[]], True), ([None, ["a"]], True), ([None, "a"], False)]
)
@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_the_first_label_shows_whether_labels_are_lists(name: str, labels: list[Any], expected: bool, tmp_path: Path) -> None:
    records = [{"path": "x", "tags": label} for label in labels]
    if name == "t.jsonl":
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / name)
    assert open_table(tmp_path / name).has_lists(None) == expected
    assert open_table(tmp_path / name).has_lists("tags") == expected


def test_a_table_without_labels_is_not_read_to_its_end_for_lists(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": [1]}\n')
    table = open_table(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").unlink()
    assert not table.has_lists(None)


def test_a_parquet_file_that_is_damaged_further_on_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"path": [f"{number}.png" for number in range(100)], "label": ["a"] * 100})
    parquet.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=False)
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content.replace(b"\x06\0\0\0", b"\xff" * 4))
    with pytest.raises(InputError, match=r"t\.parquet' is damaged \(Invalid .*\); expected a parquet file; save it anew$"):
        list(open_table(tmp_path / "t.parquet").paths())


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_two_columns_of_one_name_are_refused(name: str, tmp_path: Path) -> None:
    if name == "t.csv":
        (tmp_path / name).write_text("path,path,label\na,b,c\n")
    else:
        parquet.write_table(pyarrow.table([["a"], ["b"], ["c"]], names=["path", "path", "label"]), tmp_path / name)
    with pytest.raises(InputError, match="has 2 columns that may be meant: 'path', 'path'"):
        list(open_table(tmp_path / name).paths())
    with pytest.raises(InputError, match=r"path_column is 'path', but the columns of .* are 'path', 'path', 'label'"):
        open_table(tmp_path / name).find_columns("path", None, None)
