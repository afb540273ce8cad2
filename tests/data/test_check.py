import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dropkey_cli.data import check
from dropkey_cli.data.check import Report, check_folder, missing_note, refuse_unreadable
from dropkey_cli.data.dataset import ImageDataset, Sample
from dropkey_cli.data.reading import Names
from dropkey_cli.errors import InputError
from tests.data.odd_images import NOISE, ODD, PNG, write_all

MakePictures = Callable[[dict[str, int]], str]


def as_tensor(image: Image.Image) -> Tensor:
    """The pixels as reading gives them, (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def names(report: Report) -> dict[str, str]:
    """Reason by file name."""
    return {os.path.basename(path): reason for path, reason in report.unreadable}


@pytest.fixture(scope="module")
def odd_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_all(root / "odd")
    (root / "plain").mkdir()
    NOISE.save(root / "plain/noise.png")
    return root


@pytest.fixture(scope="module", params=[0, 2])
def odd_report(odd_root: Path, request: pytest.FixtureRequest) -> Report:
    return check_folder(str(odd_root), num_workers=request.param)


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_training_reads_what_the_check_calls_readable_and_nothing_else(name: str, odd_root: Path, odd_report: Report) -> None:
    path = str(odd_root / "odd" / name)
    training = ImageDataset([Sample(path, 0)], as_tensor, image_size=1)
    if ODD[name].pixels is None:
        assert name in names(odd_report)
        with pytest.raises(InputError, match=r"^cannot read ") as refused:
            training[0]
        assert str(refused.value).startswith(f"cannot read {path!r} ({names(odd_report)[name]}); expected an image; repair")
        with pytest.raises(OSError, match=ODD[name].reason):
            raise OSError(names(odd_report)[name])
    else:
        assert os.path.basename(name) not in names(odd_report)
        pixels = training[0]["image"].permute(1, 2, 0).numpy()
        assert pixels.shape == ODD[name].pixels.shape  # type: ignore[union-attr]  # not None here
        difference = np.abs(pixels.astype(int) - ODD[name].pixels)
        assert difference.max() <= (3 if name.lower().endswith(".jpg") else 0)  # JPEG rounds colours


def test_every_file_is_counted_once_and_every_bad_one_listed(odd_report: Report) -> None:
    assert odd_report.images == {"train": {"odd": len(ODD), "plain": 1}}
    assert sorted(names(odd_report)) == sorted(name for name, odd in ODD.items() if odd.reason)
    assert len(odd_report.unreadable) > 15
    assert not odd_report.is_clean


def test_notes_are_counted_with_one_example(odd_report: Report) -> None:
    assert len(odd_report.notes) == 9
    for note, (_, count, example) in odd_report.notes.items():
        assert count == sum(note in odd.notes for odd in ODD.values())
        assert note in next(odd.notes for name, odd in ODD.items() if example.endswith(f"/odd/{name}"))


def test_a_clean_folder_is_clean(make_images: MakePictures) -> None:
    report = check_folder(make_images({"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1}), num_workers=0)
    assert report == Report({"train": {"cat": 3, "dog": 2}, "val": {"cat": 1, "dog": 1}}, [], [], [], 0, {})
    assert report.is_clean
    assert report.missing == {}


def test_the_same_bytes_are_found_in_two_splits_and_classes(make_images: MakePictures) -> None:
    root = Path(make_images({"train/cat": 4, "train/dog": 3, "val/cat": 2, "val/dog": 2, "test/dog": 1}))
    shutil.copy(root / "train/cat/000.png", root / "val/cat/copy.jpg")
    (root / "test/dog/link.png").symlink_to(root / "train/cat/000.png")
    os.link(root / "train/dog/001.png", root / "train/cat/hard.png")
    shutil.copy(root / "train/dog/002.png", root / "train/dog/again.png")
    report = check_folder(str(root), num_workers=0)
    found = [[image.path.removeprefix(f"{root}/") for image in group] for group in report.in_two_splits]
    assert found == [["train/cat/000.png", "val/cat/copy.jpg", "test/dog/link.png"]]
    found = [[image.path.removeprefix(f"{root}/") for image in group] for group in report.two_labels]
    assert found == [
        ["train/cat/000.png", "val/cat/copy.jpg", "test/dog/link.png"],
        ["train/cat/hard.png", "train/dog/001.png"],
    ]
    assert report.repeated == 1
    assert not report.unreadable
    assert not report.is_clean


@pytest.mark.parametrize(("copies", "clean"), [({"train/cat": 2}, True), ({"train/dog": 1}, False), ({"val/cat": 1}, False)])
def test_repeats_of_one_class_and_split_are_no_fault(make_images: MakePictures, copies: dict[str, int], clean: bool) -> None:
    root = Path(make_images({"train/cat": 2, "train/dog": 1, "val/cat": 1, "val/dog": 1}))
    for folder, number in copies.items():
        for copy in range(number):
            shutil.copy(root / "train/cat/000.png", root / folder / f"copy{copy}.png")
    report = check_folder(str(root), num_workers=0)
    assert (report.is_clean, report.repeated) == (clean, 2 if clean else 0)


def test_files_of_one_size_and_other_bytes_are_different_images(tmp_path: Path) -> None:
    for folder, grey in (("train/a", 1), ("train/b", 2), ("val/a", 3)):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (16, 16), grey).save(tmp_path / folder / "x.bmp")
    assert len({file.stat().st_size for file in tmp_path.rglob("*.bmp")}) == 1
    assert check_folder(str(tmp_path), num_workers=0).is_clean


def test_unreadable_files_are_not_the_same_image(make_images: MakePictures) -> None:
    root = Path(make_images({"train/cat": 1, "train/dog": 1, "val/cat": 1}))
    for folder in ("train/cat", "train/dog", "val/cat"):
        (root / folder / "empty.png").touch()
    report = check_folder(str(root), num_workers=0)
    assert len(report.unreadable) == 3
    assert not report.in_two_splits
    assert not report.two_labels


def test_classes_without_images_are_named_by_split(make_images: MakePictures) -> None:
    report = check_folder(
        make_images({"train/cat": 2, "train/dog": 0, "train/owl": 1, "val/cat": 1, "val/dog": 1}), num_workers=0
    )
    assert report.images == {"train": {"cat": 2, "dog": 0, "owl": 1}, "val": {"cat": 1, "dog": 1, "owl": 0}}
    assert report.missing == {"train": ["dog"], "val": ["owl"]}


def test_folders_for_evaluation_alone_are_checked(make_images: MakePictures) -> None:
    report = check_folder(make_images({"val/cat": 1, "test/dog": 2}), num_workers=0)
    assert report.images == {"val": {"cat": 1, "dog": 0}, "test": {"cat": 0, "dog": 2}}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 2}, r"found 1 class\(es\) \('cat'\)"),
        ({"train/cat": 1, "train/dog": 1, "val/dgo": 1}, r"unknown class folder\(s\): 'dgo'"),
        ({"train/cat": 1, "train/dog": 1, "val/dog": 0}, r"no images in the class folders of '.*val'"),
    ],
)
def test_what_is_no_layout_is_refused(make_images: MakePictures, counts: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_folder(make_images(counts), num_workers=0)


def test_progress_sees_every_task(make_images: MakePictures) -> None:
    seen: list[tuple[str, float, int]] = []

    def progress(sequence: Iterable[Any], description: str, total: float) -> Iterable[Any]:
        tasks = list(sequence)
        seen.append((description, total, len(tasks)))
        return tasks

    check_folder(make_images({"cat": 20, "dog": 20}), num_workers=0, progress=progress)
    assert seen[0] == ("reading", 3, 3)  # of 16, 16 and 8 images
    assert seen[1][0] == "comparing"


def test_unreadable_headers_are_refused_together_and_five_are_named(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(PNG)
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"" if number else b"text")
    broken, good = [str(tmp_path / f"{number}.png") for number in range(7)], str(tmp_path / "good.png")
    refuse_unreadable("my photos", [Names([good]), Names([good])])
    message = (
        r"^of all 9 images, 7 cannot be read: '.*/0\.png' \(cannot .*\), '.*/1\.png' \(the file is empty\), .*4\.png.*, …; "
        r"expected images; dropkey check 'my photos' lists every one: .*--data\.on_error skip$"
    )
    with pytest.raises(InputError, match=message) as refused:
        refuse_unreadable("my photos", [Names([good]), Names([*broken, good])])
    assert "5.png" not in str(refused.value)


def test_headers_are_opened_evenly_over_the_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("dropkey_cli.data.check._header_error", lambda path, _: opened.append(path))
    refuse_unreadable("x", [Names(f"train{n}" for n in range(9000)), Names(f"val{n}" for n in range(1000))])
    assert len(set(opened)) == len(opened) == 1000
    assert sum(path.startswith("val") for path in opened) == 100
    assert opened[:3] == ["train0", "train10", "train20"]
    opened.clear()
    refuse_unreadable("x", [Names(f"train{n}" for n in range(1500))])
    assert opened == [f"train{n}" for n in range(0, 1500, 2)]  # never more than the limit


def test_headers_never_refuse_what_training_reads(odd_root: Path) -> None:
    for name, odd in ODD.items():
        if odd.pixels is not None:
            refuse_unreadable("x", [Names([str(odd_root / "odd" / name)])])


def test_note_on_classes_that_a_split_lacks() -> None:
    classes = [f"c{number}" for number in range(8)]
    everything = [Sample("x", label) for label in range(8)]
    assert missing_note({"train": everything, "val": everything}, classes) is None
    note = missing_note({"train": everything, "val": everything[:7], "test": everything[:1]}, classes)
    assert note == "val has no image of 1 class(es): 'c7'. test has no image of 7 class(es): 'c1', 'c2', 'c3', 'c4', 'c5', …."


def test_files_that_vanish_before_they_are_compared_are_not_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir(parents=True)
        NOISE.save(tmp_path / name / "noise.png")
    root = str(tmp_path)
    assert len(check_folder(root, num_workers=0).two_labels) == 1
    monkeypatch.setattr(check, "content_hash", lambda _: b"")
    assert check_folder(root, num_workers=0).two_labels == []
