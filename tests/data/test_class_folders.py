import os
from pathlib import Path

import pytest

from dropkey_cli.data.class_folders import check_classes, check_counts, find_classes, find_splits, list_samples, sorted_classes
from dropkey_cli.errors import InputError


def folders(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
    return str(root)


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_find_splits_knows_the_names_of_the_validation_folder(tmp_path: Path, val: str) -> None:
    root = folders(tmp_path, "train", val, "test", "notes")
    assert find_splits(root) == {"train": tmp_path / "train", "val": tmp_path / val, "test": tmp_path / "test"}


def test_find_splits_takes_class_folders_as_training_images(tmp_path: Path) -> None:
    assert find_splits(folders(tmp_path, "cat", "dog", ".cache")) == {"train": tmp_path}


def test_find_splits_takes_a_folder_for_evaluation_only(tmp_path: Path) -> None:
    assert find_splits(folders(tmp_path, "test")) == {"test": tmp_path / "test"}


def test_find_splits_refuses_what_is_no_such_layout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--data\.root is not given; expected ROOT/train/CLASS/\*\.jpg with"):
        find_splits(None)
    with pytest.raises(InputError, match=r"missing' does not exist; expected ROOT/train/CLASS"):
        find_splits(str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"a\.jpg' is a file, not a folder; expected ROOT/train/CLASS"):
        find_splits(str(images(tmp_path, "a.jpg") / "a.jpg"))
    with pytest.raises(InputError, match=r"has both val/ and validation/; expected one val folder"):
        find_splits(folders(tmp_path / "both", "train", "val", "validation"))
    with pytest.raises(InputError, match=r"has val/ but no train/ \(found: training/, val/\); .*rename"):
        find_splits(folders(tmp_path / "mixed", "training", "val"))


def test_list_samples_finds_nested_visible_images_in_path_order(tmp_path: Path) -> None:
    root = tmp_path / ".data"  # a hidden folder above the root hides nothing
    images(root, "b/2.JPG", "b/deep/er/1.png", "a/1.png", "a/._1.png", "a/.cache/x.png", "a/notes.txt")
    found = [(sample.path.removeprefix(f"{root}/"), sample.label) for sample in list_samples(root, ["b", "a", "none"])]
    assert found == [("a/1.png", 1), ("b/2.JPG", 0), ("b/deep/er/1.png", 0)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["10", "9", "-1"], ["-1", "9", "10"]), (["10", "9", "a"], ["10", "9", "a"]), (["1", "01"], ["01", "1"]), ([], [])],
)
def test_classes_are_sorted_and_whole_numbers_by_size(names: list[str], expected: list[str]) -> None:
    assert sorted_classes(names) == expected


def test_list_samples_follows_links(tmp_path: Path) -> None:
    images(tmp_path, "store/cats/1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/cat").symlink_to(tmp_path / "store/cats")
    assert find_classes(tmp_path / "root") == ["cat"]
    assert [sample.label for sample in list_samples(tmp_path / "root", ["cat"])] == [0]


def test_list_samples_goes_around_no_circle_and_into_no_other_class(tmp_path: Path) -> None:
    root = images(tmp_path / "root", "cat/1.png", "dog/1.png", "dog/deep/2.png")
    for number in range(40):  # each would double the time and the images
        (root / f"dog/deep/up{number}").symlink_to(root / "dog")
    (root / "cat/all").symlink_to(root)
    found = [(sample.path.removeprefix(f"{root}/"), sample.label) for sample in list_samples(root, ["cat", "dog"])]
    assert found == [("cat/1.png", 0), ("dog/1.png", 1), ("dog/deep/2.png", 1)]


def test_links_that_multiply_are_followed_once(tmp_path: Path) -> None:
    for level in range(12):  # 4096 ways to the image
        (tmp_path / f"{level}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}")
    images(tmp_path, "12/1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/cat").symlink_to(tmp_path / "0")
    assert len(list_samples(tmp_path / "root", ["cat"])) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_list_samples_lists_whatever_is_named_like_an_image(tmp_path: Path) -> None:
    images(tmp_path, "cat/folder.jpg/1.png")
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    (tmp_path / "cat/gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "cat/itself.jpg").symlink_to(tmp_path / "cat/itself.jpg")
    found = [sample.path.removeprefix(f"{tmp_path}/cat/") for sample in list_samples(tmp_path, ["cat"])]
    assert found == ["folder.jpg/1.png", "gone.jpg", "itself.jpg", "pipe.jpg"]


def test_a_link_to_itself_is_no_class(tmp_path: Path) -> None:
    folders(tmp_path, "cat")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    assert find_classes(tmp_path) == ["cat"]


def test_a_folder_that_may_not_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        InputError, match=rf"^'{tmp_path}' cannot be listed \(Permission denied\); expected a folder that you may"
    ):
        find_classes(tmp_path)


def test_list_samples_enters_only_folders_of_the_split(tmp_path: Path) -> None:
    images(tmp_path, "secret/1.png", "root/cat/1.png", "root/.hidden/1.png")
    found = list_samples(tmp_path / "root", ["cat", "../secret", ".hidden"])
    assert [sample.label for sample in found] == [0]


def test_list_samples_refuses_images_without_class_folders(tmp_path: Path) -> None:
    images(tmp_path, "1.png", "2.png")
    with pytest.raises(InputError, match=rf"no images in the class folders of '{tmp_path}'; expected ROOT/train/CLASS"):
        list_samples(tmp_path, ["cat", "dog"])


def test_check_classes_names_unknown_folders_and_the_known_nearest_first(tmp_path: Path) -> None:
    folders(tmp_path, "cat", "dgo")
    with pytest.raises(InputError, match=r"1 unknown class folder\(s\): 'dgo'; .*3 known .*: 'dog', '.*', '.*'; rename"):
        check_classes({"val": tmp_path}, ["bird", "cat", "dog"])


def test_check_classes_lists_ten_of_many_classes(tmp_path: Path) -> None:
    folders(tmp_path, "class_77x")
    with pytest.raises(InputError, match=r"'class_77', ('class_\d+'(, )?){9} …; rename"):
        check_classes({"test": tmp_path}, [f"class_{number:02d}" for number in range(100)])


@pytest.mark.parametrize(
    ("names", "message"),
    [([], r"found 0 class\(es\) \(none\)"), (["cat"], r"found 1 class\(es\) \('cat'\)"), (["a", "a"], r"\('a', 'a'\)")],
)
def test_check_classes_needs_two_different_ones(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message + "; expected ROOT/train/CLASS.*two or more classes"):
        check_classes({}, names)


def test_check_classes_refuses_one_folder_in_two_splits(tmp_path: Path) -> None:
    folders(tmp_path, "train/cat", "train/dog")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    with pytest.raises(InputError, match=r"val/cat' is the same folder in train and val"):
        check_classes({"train": tmp_path / "train", "val": tmp_path / "val"}, ["cat", "dog"])


def test_check_counts_lists_five_scarce_classes_with_their_counts(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(8)]
    folders(tmp_path, *names[1:])
    images(tmp_path, "c1/1.png", "c1/2.png", "c2/1.png")
    samples = list_samples(tmp_path, names)
    message = r"6 class\(es\) in .* too few images: 'c2' \(1\), 'c3' \(0\), 'c4' \(0\), 'c5' \(0\), 'c6' \(0\), …; "
    with pytest.raises(InputError, match=message):
        check_counts(samples, tmp_path, names, minimum=2)
    check_counts(samples[:2], tmp_path / "c1", names, minimum=2)  # c1 holds no class folder


def test_dropkeys_own_runs_are_no_class(tmp_path: Path) -> None:
    for name in ("cat", "dog", "runs/vit/version_0/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    assert find_classes(tmp_path) == ["cat", "dog"]
    (tmp_path / "runs/vit/version_0/checkpoints").rmdir()
    (tmp_path / "runs/vit/version_0").rename(tmp_path / "runs/vit/sprint")  # somebody's pictures of runs
    assert find_classes(tmp_path) == ["cat", "dog", "runs"]
