import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from dropkey_cli.data.paths import paths_of, split_lines
from dropkey_cli.errors import InputError


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder but for some files that are named like images, and others."""
    monkeypatch.chdir(tmp_path)
    in_folder = ("a b.png", "sub/猫.JPG", "c[1].png", "notes.md", ".hidden.png")
    for name in ("é.webp", *(f"photos [2024]/{name}" for name in in_folder)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def given_on_stdin(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos [2024]/*", ["a b.png", "c[1].png"]),  # a folder's own brackets, and files only
        ("photos [2024]/*.png", ["a b.png", "c[1].png"]),
        ("photos*/**", ["a b.png", "c[1].png", "sub/猫.JPG"]),
        ("photos [2024]/**/*.JPG", ["sub/猫.JPG"]),
        ("photos [2024]/[ac]*", ["a b.png", "c[1].png"]),
        ("./photos [2024]/sub/?.JPG", ["sub/猫.JPG"]),
        ("photos [2024]/c[1].png", ["c[1].png"]),  # a file that is called so is no pattern
    ],
)
def test_patterns(pattern: str, expected: list[str]) -> None:
    assert paths_of(pattern) == [f"photos [2024]/{name}" for name in expected]


def test_patterns_with_a_whole_path_or_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [str(tmp_path / "photos [2024]" / name) for name in ("a b.png", "c[1].png")]
    assert paths_of(str(tmp_path / "photos [2024]" / "*.png")) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert paths_of("~/photos [2024]/*.png") == expected


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("photos [2024]/*.tif", r"matches nothing; expected e\.g\. 'photos/\*\.jpg'"),
        ("photos [2024]/n*", "matches 1 files and folders, no image among them"),
        ("nowhere", "'nowhere' does not exist"),
        ("x" * 300 + "*", "matches nothing"),
    ],
)
def test_what_stands_for_no_image_is_refused(root: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        paths_of(root)


def test_files_and_folders_are_what_they_were() -> None:
    assert paths_of("é.webp") == ["é.webp"]
    assert paths_of("photos [2024]/notes.md") == ["photos [2024]/notes.md"]
    assert paths_of("photos [2024]") == [f"photos [2024]/{name}" for name in ("a b.png", "c[1].png", "sub/猫.JPG")]


NAMES = ["a b.png", "missing.png", "a b.png", "sub/猫.JPG"]


def write(path: Path, column: str = "path") -> None:
    rows = [(name, number) for number, name in enumerate(NAMES)]
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"label": [str(number) for _, number in rows], column: NAMES}), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(f'{{"label": {number}, "{column}": "{name}"}}' for name, number in rows), encoding="utf-8")
    else:
        sign = "\t" if path.suffix == ".tsv" else ","
        lines = [f"label{sign}{column}", *(f'{number}{sign}"{name}"' for name, number in rows)]
        path.write_text("\r\n".join(lines), encoding="utf-8-sig")  # as spreadsheets save it


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".CSV"])
def test_tables_give_their_rows_in_order_relative_to_their_folder(suffix: str, tmp_path: Path) -> None:
    table = Path("photos [2024]") / f"table{suffix}"
    write(table)
    assert paths_of(str(table)) == [f"photos [2024]/{name}" for name in NAMES]
    os.chdir("photos [2024]")
    assert paths_of(table.name) == NAMES
    absolute = Path(f"absolute{suffix}".lower())
    if absolute.suffix == ".csv":
        absolute.write_text(f"path\n{tmp_path / 'é.webp'}\n", encoding="utf-8")
        assert paths_of(str(absolute)) == [str(tmp_path / "é.webp")]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_without_paths_is_refused(suffix: str) -> None:
    write(Path(f"t{suffix}"), column="photo")
    with pytest.raises(InputError, match=rf"'t{suffix}' has no column 'path' \(columns: 'label', 'photo'\): name one so"):
        paths_of(f"t{suffix}")


def test_an_empty_cell_is_a_row_that_is_no_image() -> None:
    Path("t.csv").write_text("path,label\n,1\né.webp,1\n")
    Path("t.jsonl").write_text('{"path": null}\n{"path": "é.webp"}\n', encoding="utf-8")
    Path("photos [2024]/t.csv").write_text("label,path\n1,\n")
    assert paths_of("t.csv") == paths_of("t.jsonl") == [".", "é.webp"]
    assert paths_of("photos [2024]/t.csv") == ["photos [2024]/"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "has no column 'path' .columns: none"),
        ("t.csv", b"path\n", "names no image: it is empty"),
        ("t.txt", b"\n\n", "names no image: it is empty"),
        ("t.jsonl", b"{path: 1}", "has no column 'path' .columns: none"),
        ("t.csv", b"path,label\na.png,1,2\n", "line 2 of 't.csv' has 3 cells, the first line 2: mend it"),
        ("t.jsonl", b'["path"]', "has no column 'path'"),
        (
            "t.jsonl",
            b'{"path": "a.png"}\n{"path": "\\ud800.png"}',
            r"line 2 of 't.jsonl' has '\\ud800.png' for an image file: mend",
        ),
        ("t.jsonl", b'{"path": "a\\u0000.npy"}', r"line 1 of 't.jsonl' has 'a\\x00.npy' for an image file: mend it"),
        ("t.parquet", b"PAR1 no more", "is damaged"),
    ],
)
def test_broken_tables_are_refused(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        paths_of(name)


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("t.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"'t\.parquet' needs pyarrow, .* pip install 'dropkey\[parquet\]'"):
        paths_of("t.parquet")


def test_lists_in_a_file_start_at_its_folder_and_on_standard_input_here(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a b.png\r\n\nmissing.png\nsub/猫.JPG".encode()
    Path("photos [2024]/list.txt").write_bytes(text)
    assert paths_of("photos [2024]/list.txt") == [f"photos [2024]/{name}" for name in ("a b.png", "missing.png", "sub/猫.JPG")]
    given_on_stdin(text, monkeypatch)
    assert paths_of("-") == ["a b.png", "missing.png", "sub/猫.JPG"]


def test_names_separated_by_nul_may_hold_line_breaks_and_any_bytes() -> None:
    assert split_lines(b"a\nb.png\0c\r\0\xff.png\0") == ["a\nb.png", "c\r", os.fsdecode(b"\xff.png")]
    assert split_lines(b"") == []
