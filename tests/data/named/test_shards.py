import gc
import json
from pathlib import Path
from typing import Any

import pytest

from dropkey_cli.data.named.named_set import NamedSet
from dropkey_cli.data.named.shards import open_shards
from dropkey_cli.data.reading import load_image
from dropkey_cli.errors import InputError
from tests.data.formats import CLASSES, pictures, write_folder, write_shards, write_tar


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos")


@pytest.fixture
def shards(photos: Path, tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", photos)


def contents(found: NamedSet) -> dict[str, list[tuple[int, bytes]]]:
    """Label and file content of each image."""
    return {
        split: [(label, given.read(place).read()) for place, label in enumerate(given.labels)]  # type: ignore[union-attr]
        for split, given in found.splits.items()
    }


def test_shards_have_what_the_folder_has(photos: Path, shards: Path) -> None:
    found = open_shards("wds/x", str(shards))
    assert found.class_names == list(CLASSES)
    expected = {split: [(label, content) for _, label, content in images] for split, images in pictures(photos).items()}
    assert contents(found) == expected
    assert found.splits["train"].names[:6] == [*(f"train-0000/{number:06d}" for number in range(5)), "train-0001/000005"]
    assert len(set(found.splits["train"].names)) == 24


@pytest.mark.filterwarnings(
    "ignore:.*unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # theirs
def test_shards_are_what_webdataset_and_timm_read(shards: Path) -> None:
    pytest.importorskip("webdataset")
    from timm.data.readers.reader_wds import ReaderWds

    names = sorted(path.name for path in shards.glob("val-*.tar"))
    info = {"name": "x", "splits": {"validation": {"name": "validation", "filenames": names, "num_samples": 15,
                                                   "shard_lengths": [5, 5, 5]}}}  # fmt: skip
    (shards / "_info.json").write_text(json.dumps(info))
    found = open_shards("wds/x", str(shards))
    assert list(found.splits) == ["val"]
    theirs = [(image.tobytes(), label) for image, label in ReaderWds(str(shards), split="validation")]
    given = found.splits["val"]
    ours = [(load_image(given.read(place)).tobytes(), label) for place, label in enumerate(given.labels)]
    assert len(ours) == 15
    assert ours == theirs
    gc.collect()  # webdataset leaves a shard open: here, where that is no error


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("train-*.tar", 24), ("train-{0000..0001}.tar", 10), ("train-{0000..0001}.tar*", 10), ("train-0004.tar", 4)],
)
def test_a_pattern_chooses_shards(pattern: str, count: int, shards: Path) -> None:
    found = open_shards("wds/x", str(shards / pattern))
    assert {split: len(given.names) for split, given in found.splits.items()} == {"train": count}


def test_the_split_is_a_word_of_the_path(shards: Path, tmp_path: Path) -> None:
    for name, expected in {
        "imagenet-train-0000.tar": "train",
        "validation/0000.tar": "val",
        "test_0.tar": "test",
        "x/VALID/train0.tar": "train",
        "latest-0000.tar": "train",
        "trainer.tar": "train",
    }.items():
        folder = tmp_path / "one" / name.replace("/", "_")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes((shards / "val-0000.tar").read_bytes())
        assert list(open_shards("wds/x", str(folder)).splits) == [expected], name


@pytest.mark.parametrize(
    ("options", "names", "labels"),
    [
        ({"target_key": "name"}, list(CLASSES), [0, 0, 0, 0, 0, 1]),
        ({"target_key": "number"}, ["0", "1", "2"], [0, 0, 0, 0, 0, 1]),
        ({"input_key": "webp;png"}, ["0", "1", "2"], [0, 0, 0, 0, 0, 1]),
        ({"splits": {"train": "val"}}, ["0", "1", "2"], [0, 0, 0, 0, 0, 1]),
    ],
)
def test_classes_come_from_where_they_are_asked_for(
    options: dict[str, Any], names: list[str], labels: list[int], shards: Path
) -> None:
    (shards / "classnames.txt").unlink()
    found = open_shards("wds/x", str(shards), **options)
    assert found.class_names == names
    given = found.splits["train" if "splits" in options else "val"].labels
    assert given[:6] == labels


def test_numbers_are_places_also_among_names_that_are_numbers(shards: Path) -> None:
    (shards / "classnames.txt").write_text("1\n2\n0\n")
    found = open_shards("wds/x", str(shards))
    assert found.class_names == ["1", "2", "0"]
    assert found.splits["val"].labels[::5] == [0, 1, 2]


def test_what_cannot_be_read_is_named(shards: Path, tmp_path: Path) -> None:
    def refused(message: str, path: object = shards, **options: Any) -> None:  # noqa: ANN401 - those of open_shards
        with pytest.raises(InputError, match=message):
            open_shards("wds/x", str(path), **options)

    refused(r"^'wds/x': '.*none/\*\.tar' does not exist; expected WebDataset shards", tmp_path / "none/*.tar")
    refused(r"train-0005\.tar' does not exist", shards / "train-{0003..0007}.tar")
    refused(r"^'wds/x': '.*empty' holds no \.tar file", write_folder(tmp_path / "empty"))
    refused("the val shards of 'wds/x' hold no image", splits={"train": "val"}, input_key="jpg")
    refused("'train-0000/000000' has no class in 'where'; expected .*one of name, number, where", target_key="where")
    write_tar(shards / "val-0000.tar", [("a.png", b"x"), ("a.json", b'{"label": 1}')])
    refused(r"'val-0000/a' has no \.cls file \(found: \.json, \.png\).*give --data.target_key FIELD", splits={"train": "val"})
    write_tar(shards / "val-0000.tar", [("a.png", b"x"), ("a.json", b"{")])
    refused(r"the \.json of 'val-0000/a' cannot be read", splits={"train": "val"}, target_key="label")
    write_tar(shards / "val-0000.tar", [("a.png", b"x"), ("a.cls", b"7")])
    refused(r"classnames\.txt' has 3 names, none for the class '7'", splits={"train": "val"})
    (shards / "info.json").write_text('{"splits": {"train": {}}}')
    refused(r"info\.json' cannot be read \(KeyError: 'filenames'\); expected timm's")


def test_what_has_the_same_name_up_to_the_first_dot_belongs_together(tmp_path: Path, photos: Path) -> None:
    image = next(photos.rglob("*.png")).read_bytes()
    write_tar(tmp_path / "train-0.tar", [("7.left.png", image), ("7.cls", b"0"), ("8.png", image), ("8.cls", b"1")])
    found = open_shards("wds/x", str(tmp_path / "train-0.tar")).splits["train"]
    assert (list(found.names), list(found.labels)) == (["train-0/7", "train-0/8"], [0, 1])
