import csv
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from dropkey_cli.data.dataset import Batch
from dropkey_cli.data.image_folder import ImageFolder
from dropkey_cli.data.table import ImageTable
from dropkey_cli.errors import InputError

MakePictures = Callable[[dict[str, int]], str]
MODEL: dict[str, Any] = {
    "image_size": 8,
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "num_workers": 0,
}


def write(file: str | Path, records: Iterable[tuple[Any, ...]], header: str = "path,label") -> str:
    with Path(file).open("w", newline="") as opened:
        csv.writer(opened).writerows([header.split(","), *records])
    return str(file)


def listed(root: str, file: str = "labels.csv") -> str:
    """A table of the images in class folders, in random order; with a split column if there are train/ and val/."""
    names = [path.relative_to(root) for path in Path(root).rglob("*.png")]
    split = any(name.parts[0] in ("train", "val") for name in names)
    records = [(name, name.parent.name, name.parts[0]) if split else (name, name.parent.name) for name in names]
    random.Random(0).shuffle(records)
    return write(f"{root}/{file}", records, "path,label,split" if split else "path,label")


def fitted(root: str | None, stage: str = "fit", **options: Any) -> ImageTable:  # noqa: ANN401 - any option
    data = ImageTable(root, **{**MODEL, **options})
    data.setup(stage)
    return data


@pytest.mark.parametrize(
    "counts", [{"cat": 20, "dog": 11}, {"train/cat": 3, "train/dog": 2, "validation/dog": 2, "test/cat": 1}]
)
@pytest.mark.parametrize("options", [{}, {"val_fraction": 0.3, "split_seed": 7}])
def test_a_table_holds_what_the_same_folder_holds(
    counts: dict[str, int], options: dict[str, Any], make_images: MakePictures
) -> None:
    root = make_images(counts)
    folder = ImageFolder(root, **MODEL, **options)
    folder.setup("fit")
    table = fitted(listed(root), **options)
    assert table.class_names == folder.class_names == ["cat", "dog"]
    assert table.split_note == folder.split_note
    assert table.splits.keys() == folder.splits.keys()
    for split, dataset in folder.splits.items():
        assert table.splits[split].samples == dataset.samples
        assert table.splits[split].transform.__class__ is dataset.transform.__class__
        if split != "train":
            assert torch.equal(table.splits[split][0]["image"], dataset[0]["image"])


def test_the_held_out_images_depend_on_their_names_alone(make_images: MakePictures, tmp_path: Path) -> None:
    root = make_images({"cat": 20, "dog": 10})
    beside = fitted(listed(root))
    names = [(path.relative_to(root), path.parent.name) for path in Path(root).rglob("*.png")]
    elsewhere = write(tmp_path / "l.csv", names)
    absolute = write(Path(root, "absolute.csv"), [(Path(root, name), label) for name, label in names])
    assert fitted(elsewhere, image_root=root).splits["val"].samples == beside.splits["val"].samples
    assert fitted(absolute).splits["val"].samples == beside.splits["val"].samples


def test_a_table_in_the_working_folder(make_images: MakePictures, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_images({"cat": 5, "dog": 5})
    listed(root)
    monkeypatch.chdir(root)
    data = fitted("labels.csv")
    assert data.splits["val"].samples == fitted("./labels.csv").splits["val"].samples
    assert data.splits["train"].paths[0].startswith("cat/")
    assert data.plan_lines()[-1] == ("table", "labels.csv: image in 'path', label in 'label', no split column")


def test_tables_of_their_own_for_validation_and_test(make_images: MakePictures, tmp_path: Path) -> None:
    root = Path(make_images({"cat": 4, "dog": 3, "more/cat": 1, "more/dog": 2}))
    train = listed(str(root / "cat"), "unused.csv")
    train = write(root / "train.csv", [(f"{name}/{n:03}.png", name) for name, m in (("cat", 4), ("dog", 3)) for n in range(m)])
    val = write(root / "more/val.tsv", [], "x").replace("val.tsv", "val.csv")
    write(val, [("cat/000.png", "cat", "train"), ("dog/000.png", "dog", "?")], "file,class,split")
    test = write(root / "test.csv", [("more/dog/001.png", "dog")])
    data = fitted(train, val_root=val, test_root=test)
    assert {split: len(dataset) for split, dataset in data.splits.items()} == {"train": 7, "val": 2, "test": 1}
    assert data.splits["val"].paths[1] == str(root / "more/dog/000.png")
    Path(train).unlink()  # evaluation needs no training images
    assert list(fitted(train, "test", test_root=test, class_names=["cat", "dog"]).splits) == ["test"]
    assert list(fitted(None, "validate", val_root=val, class_names=["cat", "dog"]).splits) == ["val"]
    with pytest.raises(InputError, match=r"--data\.root is not given; expected a table, \*\.csv"):
        fitted(None, "fit", val_root=val)


def test_classes_are_those_of_the_training_rows(make_images: MakePictures) -> None:
    root = make_images({"1": 2, "2": 2, "10": 3})
    rows = [(f"{name}/{n:03}.png", name, "train") for name in ("1", "2", "10") for n in range(2)]
    table = write(f"{root}/t.csv", [*rows, ("10/002.png", "10", "val")], "path,label,split")
    assert fitted(table).class_names == ["1", "2", "10"]
    given = fitted(table, class_names=["10", "2", "1", "none"])
    assert given.splits["train"].class_counts(4) == [2, 2, 2, 0]
    with pytest.raises(
        InputError, match=r"3 row\(s\) cannot .*t\.csv:6 has an unknown label, '10', .* one of the classes '1', '2'"
    ):
        fitted(table, class_names=["1", "2"])
    rows[0] = (rows[0][0], "1", "val")
    with pytest.raises(InputError, match=r"1 row\(s\) cannot be used: t\.csv:2 has an unknown label, '1'"):
        fitted(write(f"{root}/t.csv", [rows[0], *rows[2:]], "path,label,split"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"found 0 class\(es\) \(none\) in the training rows of '.*t.csv'; expected two or more .*--data\.label_column"),
        ([("cat/000.png", "cat")], r"found 1 class\(es\) \('cat'\)"),
        ([("cat/000.png", "cat"), ("cat/001.png", "cat"), ("dog/000.png", "dog")], r"'dog' \(1\); expected at least 2"),
        ([("cat/000.png", "cat"), ("dog/009.png", "dog")], r"t\.csv:3 names '.*dog/009.png', which does not exist"),
    ],
)
def test_too_few_classes_or_images(rows: list[tuple[str, str]], message: str, make_images: MakePictures) -> None:
    root = make_images({"cat": 2, "dog": 2})
    with pytest.raises(InputError, match=message):
        fitted(write(f"{root}/t.csv", rows))


def test_files_that_are_gone_or_damaged_can_be_skipped(make_images: MakePictures) -> None:
    root = make_images({"cat": 5, "dog": 5})
    table = listed(root)
    Path(root, "cat/000.png").unlink()
    with pytest.raises(InputError, match=r"1 row\(s\) cannot be used: labels\.csv:\d+ names '.*cat/000.png', which does not"):
        fitted(table)
    Path(root, "cat/000.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"of all 10 images, 1 cannot be read: '.*cat/000.png'"):
        fitted(table)
    assert sum(map(len, fitted(table, on_error="skip").splits.values())) == 10


def test_a_test_without_rows_says_how_to_give_some(make_images: MakePictures) -> None:
    root = make_images({"cat": 1, "dog": 1})
    with pytest.raises(
        InputError, match=r"no test images \(splits: none\); give a table of test images as --data\.test_root FILE"
    ):
        fitted(listed(root), "test", class_names=["cat", "dog"])
    with pytest.raises(InputError, match=r"val_fraction is 0\.0; .* or mark rows with val in a split column"):
        fitted(listed(root), val_fraction=0.0)


def test_repeated_rows_are_said(make_images: MakePictures) -> None:
    root = make_images({"cat": 5, "dog": 5})
    table = Path(listed(root))
    table.write_text(table.read_text() + "./cat/000.png,cat\n")
    data = fitted(str(table))
    assert sum(map(len, data.splits.values())) == 10
    assert data.plan_lines()[-1][1].endswith("; 1 row(s) that repeat another are left out")


def test_several_labels_become_one_vector_per_image(make_images: MakePictures) -> None:
    root = make_images({"x": 4})
    rows = [("x/000.png", "b;a", "train"), ("x/001.png", "", "train"), ("x/002.png", "c", "train"), ("x/003.png", "c;b", "val")]
    data = fitted(write(f"{root}/t.csv", rows, "path,labels,split"), label_separator=";")
    assert data.multi_label
    assert data.class_names == ["a", "b", "c"]
    assert data.splits["train"].labels == [(0, 1), (), (2,)]
    batch = cast(Batch, next(iter(data.val_dataloader())))
    assert batch["label"].dtype == torch.float32
    assert batch["label"].tolist() == [[0, 1, 1]]
    assert data.splits["val"][-1]["label"].tolist() == [0, 0, 0]  # type: ignore[union-attr]  # padding
