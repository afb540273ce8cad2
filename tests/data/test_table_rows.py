import json
import random
from pathlib import Path
from typing import Any

import pytest

from dropkey_cli.data.dataset import Sample
from dropkey_cli.data.table_file import open_table
from dropkey_cli.data.table_rows import TableRows
from dropkey_cli.errors import InputError


def rows_of(folder: Path, *records: Any, separator: str | None = None, split: str | None = None) -> TableRows:  # noqa: ANN401
    """The rows of a JSONL file; a tuple is path, label and perhaps split, a text is a line."""
    keys = ("path", "label", "split")
    lines = [record if isinstance(record, str) else json.dumps(dict(zip(keys, record, strict=False))) for record in records]
    (folder / "t.jsonl").write_text("\n".join(lines))
    rows, table = TableRows(separator), open_table(folder / "t.jsonl")
    rows.add(table, table.find_columns(None, None, None), folder=str(folder), split=split)
    return rows


def test_images_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = [f"{folder}/{number}.png" for folder in ("a", "a b", "B", "ä") for number in (1, 10, 2)]
    records = [(name, name[0]) for name in names]
    random.Random(0).shuffle(records)
    samples = rows_of(tmp_path, *records).samples(["B", "a", "ä"], look=False)
    assert samples.keys() == {"train"}
    assert [sample.path for sample in samples["train"]] == sorted(f"{tmp_path}/{name}" for name in names)
    assert [sample.label for sample in samples["train"]] == [0] * 3 + [1] * 6 + [2] * 3


@pytest.mark.parametrize("absolute", [False, True])
def test_paths_start_from_the_folder_unless_they_are_absolute(absolute: bool, tmp_path: Path) -> None:
    names = ["x/../a.png", "./b//c.png", "../d.png"]
    records = [(f"/elsewhere/{name}" if absolute else name, 1) for name in names]
    found = {sample.path for sample in rows_of(tmp_path, *records).samples(["1"], look=False)["train"]}
    base = Path("/elsewhere") if absolute else tmp_path
    assert found == {str(base / "a.png"), str(base / "b/c.png"), str(base.parent / "d.png")}


def test_splits_have_synonyms(tmp_path: Path) -> None:
    words = ["train", "VAL", " valid", "validation", "Test"]
    records = [(f"{number}.png", "a", word) for number, word in enumerate(words)]
    samples = rows_of(tmp_path, *records).samples(["a"], look=False)
    assert {split: len(images) for split, images in samples.items()} == {"train": 1, "val": 3, "test": 1}
    assert rows_of(tmp_path, *records, split="test").samples(["a"], look=False).keys() == {"test"}


def test_whole_numbers_are_labels(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ("a", 10), ("b", "2"), ("c", 9.0), ("d", " 10 "))
    assert rows.names("train") == {"2", "9", "10"}
    assert [sample.label for sample in rows.samples(["2", "9", "10"], look=False)["train"]] == [2, 0, 1, 2]


def test_names_are_those_of_one_split(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ("1", ["a", "b"], "train"), ("2", ["b"], "val"), ("3", ["c"], "val"), ("4", [], "train"))
    assert (rows.names("train"), rows.names("val"), rows.names("test")) == ({"a", "b"}, {"b", "c"}, set())


def test_several_labels_in_a_cell(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ("1", "dog| cat"), ("2", ""), ("3", "cat||cat"), ("4", ["dog", "cat"]), ("5", []), separator="|")
    assert rows.is_multi
    labels = [sample.label for sample in rows.samples(["cat", "dog"], look=False)["train"]]
    assert labels == [(0, 1), (), (0,), (0, 1), ()]


def test_the_order_of_labels_says_nothing(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ("1", ["dog", "cat"]), ("1", ["cat", "dog", "cat"]))
    assert rows.samples(["cat", "dog"], look=False)["train"] == [Sample(f"{tmp_path}/1", (0, 1))]


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(InputError, match=r"label_separator is empty; .* --data\.label_separator '\|'"):
        TableRows("")


def test_lists_make_all_images_have_several_labels(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ("1", "cat"), ("2", ["dog"]))
    assert rows.is_multi
    assert [sample.label for sample in rows.samples(["cat", "dog"], look=False)["train"]] == [(0,), (1,)]
    assert not rows_of(tmp_path, ("1", "cat|dog")).is_multi


def test_rows_that_repeat_another_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ("b", 1), ("a", 2), ("./b", 1), ("b", "1"))
    assert rows.samples(["1", "2"], look=False) == {"train": [Sample(f"{tmp_path}/a", 1), Sample(f"{tmp_path}/b", 0)]}
    assert rows.num_repeated == 2


FAULTS = [
    (("", "a"), "has no image file"),
    ((None, "a"), "has no image file"),
    ((3, "a"), "has 3 for an image file"),
    (("x\0.png", "a"), r"has 'x\x00.png' for an image file"),
    (({"bytes": "x" * 99, "path": None}, "a"), "has {'bytes': '" + "x" * 49 + "… for an image file"),
    (("1.png", ""), "has no label"),
    (("1.png", "  "), "has no label"),
    (("1.png", None), "has no label"),
    (("1.png", float("nan")), "has no label"),
    (("1.png", ["a", None]), "has no label"),
    (("\ud800.png", "a"), r"has '\ud800.png' for an image file"),
    (("1.png", "b\ud800"), r"has label 'b\ud800', neither a name nor a whole number"),
    (("1.png", 1.5), "has label 1.5, neither a name nor a whole number"),
    (("1.png", {"a": 1}), "has label {'a': 1}, neither a name nor a whole number"),
    (("1.png", "a", "dev"), "has split 'dev', not one of train, val, valid, validation, test"),
    (("1.png", "a", None), "has split None, not one of train"),
    (("1.png", "aa"), "has an unknown label, 'aa'"),
    (("1.png", ["a", "aa"]), "has an unknown label, 'a', 'aa'"),
    (("0.png", "b"), "gives '{folder}/0.png' another label than t.jsonl:1"),
    (("0.png", "a", "val"), "gives '{folder}/0.png' another split than t.jsonl:1"),
    ("{", "is no JSON object"),
]


@pytest.mark.parametrize(("record", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_row_that_cannot_be_used_is_refused_with_its_line(record: Any, message: str, tmp_path: Path) -> None:  # noqa: ANN401
    good = [("0.png", "a", "train"), ("9.png", "b", "train")]
    if isinstance(record, tuple) and len(record) == 2:
        record = (*record, "train")
    with pytest.raises(InputError) as refused:
        rows_of(tmp_path, *good, record).samples(["a", "b"], look=False)
    line = str(refused.value)
    assert line.startswith(f"1 row(s) cannot be used: t.jsonl:3 {message.replace('{folder}', str(tmp_path))}")
    assert f"; expected in each an image file, as a path from '{tmp_path}', and its label" in line
    assert ("one of the classes 'a', 'b'" in line) == ("unknown" in message)


def test_all_rows_that_cannot_be_used_are_counted_and_five_named(tmp_path: Path) -> None:
    (tmp_path / "9.png").touch()
    records = [("9.png", "a"), *[(f"{number}.png", "a" if number % 2 else "") for number in range(8)]]
    with pytest.raises(InputError, match=r"^8 row\(s\) cannot be used: ") as refused:
        rows_of(tmp_path, *records).samples(["a"], look=True)
    found = str(refused.value)
    assert [f"t.jsonl:{line}" in found for line in range(1, 10)] == [False] + [True] * 5 + [False] * 3
    assert f"t.jsonl:3 names '{tmp_path}/1.png', which does not exist, t.jsonl:4 has no label" in found
    assert found.endswith("give the images' folder as --data.image_root")


def test_a_thousand_files_are_looked_for_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def exists(path: str) -> bool:
        seen.append(path)
        return True

    monkeypatch.setattr("os.path.lexists", exists)
    rows_of(tmp_path, *[(f"{number:04}", "a") for number in range(2500)]).samples(["a"], look=True)
    assert [int(path[-4:]) for path in seen] == list(range(0, 2500, 3))
