from pathlib import Path

import pytest

from dropkey_cli.data.named.tar_sets import open_tars
from dropkey_cli.errors import InputError
from tests.data.formats import CLASSES, pictures, write_folder, write_tar


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", {"train": 3, "val": 2, "test": 1})


def files(photos: Path, prefix: str, split: str = "") -> list[tuple[str, bytes]]:
    """The pictures of one split, or of all in their folders, with their content."""
    return [
        (prefix + ("" if split else f"{part}/") + name, content)
        for part, images in pictures(photos).items()
        if part.startswith(split)
        for name, _, content in images
    ]


def check(photos: Path, path: Path) -> None:
    """The set has what the folder has."""
    found, expected = open_tars("the root", str(path)), pictures(photos)
    assert found.class_names == list(CLASSES)
    assert found.splits.keys() == expected.keys()
    for split, images in expected.items():
        given = found.splits[split]
        read = [given.read(position).read() for position in range(len(images))]  # type: ignore[union-attr]  # a file's content
        wanted = [(f"{split}/{name}", label, content) for name, label, content in images]
        assert [*zip(given.names, given.labels, read, strict=True)] == wanted


@pytest.mark.parametrize("prefix", ["", "./", "photos/", "./a/b/"])
def test_one_archive_with_splits_has_what_the_folder_has(prefix: str, photos: Path, tmp_path: Path) -> None:
    check(photos, write_tar(tmp_path / "photos.tar", files(photos, prefix)))


@pytest.mark.parametrize("inner", ["", "./", "train/"])
def test_an_archive_for_each_split(inner: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    for split in ("train", "val", "test"):
        write_tar(tmp_path / f"archives/{split}.tar", files(photos, inner.replace("train", split), split))
    check(photos, tmp_path / "archives")


def test_an_archive_for_each_class_as_imagenet_has_them(photos: Path, tmp_path: Path) -> None:
    for split, images in pictures(photos).items():
        (tmp_path / "archives" / split).mkdir(parents=True)
        for name in CLASSES:
            own = [(path.partition("/")[2], content) for path, _, content in images if path.startswith(name)]
            write_tar(tmp_path / "archives" / split / f"{name}.tar", own)
    check(photos, tmp_path / "archives")
    whole = [(f"{split}/{name}.tar", (tmp_path / "archives" / split / f"{name}.tar").read_bytes())
             for split in ("train", "val", "test") for name in CLASSES]  # fmt: skip
    check(photos, write_tar(tmp_path / "tars in a tar.tar", whole))


def test_without_splits_all_is_for_training(photos: Path, tmp_path: Path) -> None:
    found = open_tars("the root", str(write_tar(tmp_path / "a.tar", files(photos, "photos/", "train"))))
    assert list(found.splits) == ["train"]
    assert found.splits["train"].labels == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_what_is_no_image_in_a_class_folder_is_left_out(photos: Path, tmp_path: Path) -> None:
    more = [("train/readme.png", b"x"), ("train/cat/._000.png", b"x"), ("train/cat/notes.txt", b"x"), ("other/cat/1.png", b"x")]
    check(photos, write_tar(tmp_path / "a.tar", files(photos, "") + more))


def test_a_picture_above_the_folders_hides_none_of_them(photos: Path, tmp_path: Path) -> None:
    check(photos, write_tar(tmp_path / "a.tar", [("photos/cover.png", b"x"), *files(photos, "photos/")]))


def test_the_last_of_two_files_with_one_name_counts_as_for_tar(photos: Path, tmp_path: Path) -> None:
    given = files(photos, "")
    check(photos, write_tar(tmp_path / "a.tar", [(given[0][0], b"an earlier version"), *given]))


def test_folders_named_by_numbers_are_names(photos: Path, tmp_path: Path) -> None:
    found = open_tars("r", str(write_tar(tmp_path / "a.tar", [("10/a.png", b"x"), ("9/b.png", b"y")])))
    assert found.class_names == ["9", "10"]  # as a folder's


def test_what_has_no_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^'tar/x': '.*nothing' does not exist; expected an archive with CLASS"):
        open_tars("tar/x", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"^'tar/x': '.*' holds no \.tar file; expected"):
        open_tars("tar/x", str(tmp_path))
    with pytest.raises(InputError, match=r"^'a\.tar' holds no image in a class folder; expected"):
        open_tars("a.tar", str(write_tar(tmp_path / "a.tar", [("1.png", b"x"), ("2.png", b"y")])))
    with pytest.raises(InputError, match=r"^'a\.tar' holds no image in a class folder; expected"):
        open_tars("a.tar", str(write_tar(tmp_path / "a.tar", [])))
