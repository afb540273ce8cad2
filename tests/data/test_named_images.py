import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from dropkey_cli.data.dataset import Batch
from dropkey_cli.data.image_files import ImageFiles
from dropkey_cli.data.image_folder import ImageFolder
from dropkey_cli.data.named.torchvision_sets import open_torchvision
from dropkey_cli.data.named_images import NamedImages
from dropkey_cli.data.reading import load_image
from dropkey_cli.data.table import ImageTable
from dropkey_cli.errors import InputError
from tests.data.formats import CLASSES, write_folder, write_mnist, write_parquet, write_shards, write_tar

MODEL = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}


def fitted(root: str, kind: Callable[..., ImageFiles] = NamedImages, **options: Any) -> ImageFiles:  # noqa: ANN401
    data = kind(root, **{**MODEL, "num_workers": 0, "batch_size": 4, **options})
    data.setup("fit")
    return data


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos")


def in_every_format(photos: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The options that read the same pictures from each format."""
    with tarfile.open(folder / "photos.tar", "w") as archive:
        archive.add(photos, "photos")
    cache = str(folder / "cache")
    pytest.importorskip("datasets").disable_progress_bars()
    return {
        str(folder / "photos.tar"): {},
        "tar/photos.tar": {"data_dir": str(folder)},
        f"wds/{write_shards(folder / 'shards', photos)}": {},
        "WDS/shards": {"data_dir": str(folder), "target_key": "name"},
        f"hfds/{write_parquet(folder / 'parquet', photos)}": {"data_dir": cache},
        f"hfds/{photos}": {"data_dir": cache},
    }


def batches(data: ImageFiles) -> list[tuple[Tensor, Tensor]]:
    """An epoch of training and one of validation."""
    loaders = (data.train_dataloader(), data.val_dataloader())
    return [(batch["image"], batch["label"]) for loader in loaders for batch in cast(Iterable[Batch], loader)]


def test_the_same_pictures_in_every_format_are_the_same_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    expected = batches(fitted(str(photos), ImageFolder))
    assert len(expected) == 6 + 4
    for root, options in in_every_format(photos, tmp_path).items():
        data = fitted(root, **options)
        assert data.class_names == list(CLASSES), root
        for (image, label), (other_image, other_label) in zip(expected, batches(data), strict=True):
            assert torch.equal(image, other_image), root  # in the same order, augmented alike
            assert torch.equal(label, other_label), root


def test_a_split_that_is_not_there_is_held_out(tmp_path: Path) -> None:
    data = fitted("torch/mnist", data_dir=str(write_mnist(tmp_path)), val_fraction=0.25)
    assert {split: len(dataset) for split, dataset in data.splits.items()} == {"train": 30, "val": 10, "test": 20}
    assert data.split_note == "Of 40 images, 10 for val (25%) are held out of training (split_seed 0)."
    held = data.splits["val"]
    assert data.splits["train"].class_counts(10) == [3] * 10
    assert not set(held.samples) & set(data.splits["train"].samples)
    source = open_torchvision("torch/mnist", "mnist", data_dir=str(tmp_path), download=False).splits["train"]
    for place in range(10):  # each image goes by its own name, and has its own label
        number = int(held.paths[place].removeprefix("mnist/train/"))
        assert held.labels[place] == number % 10
        assert held.read is not None
        assert load_image(held.read(place)).tobytes() == load_image(source.read(number)).tobytes()


@pytest.mark.parametrize("options", [{}, {"max_train_images": 20}])
@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_numbered_classes_and_held_out_images_are_the_same_from_folder_table_and_tar(
    splits: tuple[str, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    photos, rows = tmp_path / "photos", ["path,label,split"]
    for split in splits:
        for number in range(1, 12):
            folder = photos / split / str(number)
            folder.mkdir(parents=True)
            for place in range(5):
                Image.new("RGB", (8, 8), (number, place, len(split))).save(folder / f"{place}.png")
                rows.append(f"{split + '/' if split else ''}{number}/{place}.png,{number},{split or 'train'}")
    (photos / "labels.csv").write_text("\n".join(rows))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(photos, "photos")
    folders = fitted(str(photos), ImageFolder, **options)
    assert len(folders.splits["train"]) == options.get("max_train_images", 44)
    assert folders.class_names == [str(number) for number in range(1, 12)]
    for other in (fitted(f"{photos}/labels.csv", ImageTable, **options), fitted(f"{tmp_path}/photos.tar", **options)):
        assert other.class_names == folders.class_names
        assert other.splits.keys() == folders.splits.keys()
        for split, dataset in folders.splits.items():
            given = [str(sample.path).removeprefix(f"{photos}/") for sample in other.splits[split].samples]
            assert given == [sample.path.removeprefix(f"{photos}/") for sample in dataset.samples]
            assert other.splits[split].labels == dataset.labels


def test_classes_are_matched_by_name(photos: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", photos)
    (tmp_path / "classes.txt").write_text("owl\n\nbird \ndog\ncat\n")
    for options in ({"class_map": str(tmp_path / "classes.txt")}, {"class_names": ["owl", "bird", "dog", "cat"]}):
        data = fitted(f"wds/{shards}", **options)
        assert data.class_names == ["owl", "bird", "dog", "cat"]
        assert data.splits["train"].class_counts(4) == [8, 0, 8, 8]
        assert data.splits["train"].labels[:8] == [3] * 8
        assert data.split_note == "train has no image of 1 class(es): 'bird'. val has no image of 1 class(es): 'bird'."
    with pytest.raises(InputError, match=r"has 2 unknown class\(es\): 'cat', 'owl'; expected only the 2 known .* 'cot', 'dog'"):
        fitted(f"wds/{shards}", class_names=["cot", "dog"])


def test_classes_that_have_only_numbers_are_named_in_order(photos: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", photos)
    (shards / "classnames.txt").unlink()
    data = fitted(f"wds/{shards}", class_names=["a", "b", "c", "d"])
    assert data.splits["train"].class_counts(4) == [8, 8, 8, 0]
    with pytest.raises(InputError, match=r"has 3 unknown class\(es\): '0', '1', '2'; expected only the 2 known ones"):
        fitted(f"wds/{shards}", class_names=["a", "b"])
    with pytest.raises(InputError, match=r"has 1 unknown class\(es\): '0'; expected only the 3 known ones"):
        fitted(f"wds/{shards}", class_names=["1", "2", "3"])  # not 0 for 1, which test data without 0 would have as 1


def test_a_class_map_names_the_numbers_of_data_for_a_checkpoint_with_other_places(photos: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", photos)
    (shards / "classnames.txt").unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    data = fitted(f"wds/{shards}", class_map=str(tmp_path / "classes.txt"), class_names=["owl", "cat", "dog"])
    assert data.splits["val"].labels == [1] * 5 + [2] * 5 + [0] * 5
    (tmp_path / "classes.txt").write_text("1\n0\n2\n")
    data = fitted(f"wds/{shards}", class_map=str(tmp_path / "classes.txt"))
    assert (data.class_names, data.splits["val"].labels) == (["1", "0", "2"], [0] * 5 + [1] * 5 + [2] * 5)


def test_damaged_images_are_named_or_left_out(photos: Path, tmp_path: Path) -> None:
    files = [(path.relative_to(photos).as_posix(), path.read_bytes()) for path in sorted(photos.rglob("*.png"))]
    files[0] = (files[0][0], b"no image")
    root = str(write_tar(tmp_path / "photos.tar", files))
    data = fitted(root)
    assert data.splits["train"].paths[0] == "train/cat/000.png"
    with pytest.raises(InputError, match=r"cannot read 'train/cat/000\.png' \(cannot identify image file.*skip"):
        _ = data.splits["train"][0]
    example = fitted(root, on_error="skip").splits["train"][0]
    assert "cannot identify image file" in example["error"]
    Path(root).unlink()  # a drive that is gone
    assert "No such file" in fitted_error(data)


def fitted_error(data: ImageFiles) -> str:
    with pytest.raises(InputError) as caught:
        _ = data.splits["val"][0]
    return str(caught.value)


@pytest.mark.parametrize(
    ("root", "options", "message"),
    [
        (None, {}, "--data.root is not given; expected torch/NAME, hfds/NAME"),
        ("cifar10", {}, "--data.root 'cifar10' is no data set; expected torch/NAME"),
        ("hfids/x", {"shuffle_buffer": 0}, "shuffle_buffer is 0; expected 1 or more"),
        ("tfds/mnist", {}, "'tfds/mnist' is a data set of TensorFlow, which is not read; .*; give --data.root hfds/mnist"),
        ("torch/mnist", {"data_dir": "none"}, "the folder 'none' does not exist; expected torchvision's files"),
        ("wds/none", {}, r"'wds/none': 'none' does not exist"),
        ("tar/none", {}, r"'tar/none': 'none' does not exist"),
        ("none.tar", {"data_dir": "/x"}, r"'none.tar': '/x/none.tar' does not exist"),
        ("wds/shards", {"class_map": "none.txt"}, "class_map 'none.txt' cannot be read"),
        ("wds/shards", {"splits": {"train": "training"}}, "no split 'training'; expected one of train, val"),
        ("wds/shards", {"test_fraction": 0.1, "val_fraction": 0.95, "splits": {"train": "val"}}, "leave nothing to train on"),
        ("one.tar", {}, r"'one\.tar' has 1 class\(es\): 'cat'; expected two or more"),
        ("scarce.tar", {}, r"1 class\(es\) in 'scarce\.tar' have too few images: 'cat' \(1\); expected at least 2"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    root: str | None, options: dict[str, Any], message: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "shards", photos)
    write_tar(tmp_path / "one.tar", [(f"cat/{number}.png", b"x") for number in range(9)])
    write_tar(tmp_path / "scarce.tar", [("cat/1.png", b"x"), *((f"dog/{number}.png", b"x") for number in range(9))])
    with pytest.raises(InputError, match=message):
        fitted(root, **options)  # type: ignore[arg-type]  # None, too
    assert not os.path.exists("none")
