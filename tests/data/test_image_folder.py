import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from dropkey_cli.data.dataset import Batch
from dropkey_cli.data.image_folder import ImageFolder
from dropkey_cli.errors import InputError

MakePictures = Callable[[dict[str, int]], str]


def image_folder(root: str | None, **arguments: Any) -> ImageFolder:  # noqa: ANN401  # any argument of ImageFolder
    model = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    return ImageFolder(root, **{**model, "num_workers": 0, **arguments})


def fitted(root: str, **arguments: Any) -> ImageFolder:  # noqa: ANN401
    data = image_folder(root, **arguments)
    data.setup("fit")
    return data


def paths(data: ImageFolder, split: str) -> list[str]:
    return [sample.path.removeprefix(f"{data.root}/") for sample in data.splits[split].samples]


def test_split_folders_are_used_as_they_are(make_images: MakePictures) -> None:
    counts = {"train/cat": 3, "train/dog": 2, "validation/dog": 2, "test/cat": 1}
    data = fitted(make_images(counts))
    assert data.class_names == ["cat", "dog"]
    assert data.split_note == "val has no image of 1 class(es): 'cat'. test has no image of 1 class(es): 'dog'."
    assert {split: dataset.class_counts(2) for split, dataset in data.splits.items()} == {
        "train": [3, 2],
        "val": [0, 2],  # dog keeps its label although cat is missing
        "test": [1, 0],
    }
    batch = cast(Batch, next(iter(data.test_dataloader())))
    assert batch["path"] == [f"{data.root}/test/cat/000.png"]


@pytest.mark.parametrize("prefix", ["train/", ""])
def test_missing_validation_split_is_held_out_class_by_class(make_images: MakePictures, prefix: str) -> None:
    data = fitted(make_images({f"{prefix}cat": 20, f"{prefix}dog": 10}))
    assert list(data.splits) == ["train", "val"]
    assert data.splits["train"].class_counts(2) == [16, 8]
    assert data.splits["val"].class_counts(2) == [4, 2]
    assert Counter(paths(data, "train") + paths(data, "val")).most_common(1)[0][1] == 1
    assert data.split_note == "Of 30 images, 6 for val (20%) are held out of training (split_seed 0)."


def test_test_fraction_holds_out_a_third_part(make_images: MakePictures) -> None:
    data = fitted(make_images({"cat": 10, "dog": 10}), test_fraction=0.3)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [10, 4, 6]
    everything = paths(data, "train") + paths(data, "val") + paths(data, "test")
    assert len(set(everything)) == 20
    assert data.split_note is not None
    assert "4 for val (20%) and 6 for test (30%)" in data.split_note


def test_test_fraction_works_beside_a_validation_folder(make_images: MakePictures) -> None:
    data = fitted(make_images({"train/a": 10, "train/b": 10, "val/a": 1, "val/b": 1}), test_fraction=0.1)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [18, 2, 2]


def test_split_depends_only_on_relative_paths_and_split_seed(make_images: MakePictures, tmp_path: Path) -> None:
    root = make_images({"cat": 10, "dog": 10})
    copy = str(tmp_path / "a/copy")
    shutil.copytree(root, copy)
    here = fitted(root)
    torch.manual_seed(7)
    assert paths(fitted(copy), "val") == paths(here, "val")
    assert paths(fitted(root, class_names=["dog", "cat"]), "val") == paths(here, "val")
    assert paths(fitted(root, split_seed=1), "val") != paths(here, "val")


def test_given_class_names_set_the_labels(make_images: MakePictures) -> None:
    root = make_images({"train/cat": 2, "train/dog": 3, "val/dog": 1})
    data = fitted(root, class_names=["dog", "bird", "cat"])
    assert data.class_names == ["dog", "bird", "cat"]
    assert data.splits["train"].class_counts(3) == [3, 0, 2]
    with pytest.raises(InputError, match=r"train' has 1 unknown class folder\(s\): 'dog'"):
        fitted(root, class_names=["cat", "god"])


def test_unknown_class_in_any_split_is_an_error_before_training(make_images: MakePictures) -> None:
    root = make_images({"train/cat": 2, "train/dog": 2, "val/cat": 1, "test/dgo": 1})
    with pytest.raises(InputError, match=r"test' has 1 unknown class folder\(s\): 'dgo'; .* 'dog', 'cat'"):
        fitted(root)


def test_test_folder_alone_needs_the_class_names_of_the_checkpoint(make_images: MakePictures) -> None:
    root = make_images({"test/cat": 2, "test/dog": 1})
    data = image_folder(root, class_names=["cat", "dog"])
    data.setup("test")
    assert data.splits["test"].class_counts(2) == [2, 1]
    with pytest.raises(InputError, match=r"has no train images \(splits: test\); put images in train/"):
        data.train_dataloader()
    with pytest.raises(InputError, match="has no train/ that names the classes"):
        fitted(root)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cat": 5, "dog": 1}, r"1 class\(es\) in .* 'dog' \(1\); expected at least 2"),
        ({"train/cat": 5, "train/dog": 0, "val/cat": 1}, r"'dog' \(0\); expected at least 1"),
        ({"train/cat": 5, "train/dog": 5, "val/cat": 0}, "no images in the class folders of '.*val'"),
        ({"cat": 5}, r"found 1 class\(es\) \('cat'\)"),
        ({".": 3}, r"found 0 class\(es\) \(none\) in .*; expected ROOT/train/CLASS"),
        ({"train": 3}, r"found 0 class\(es\) \(none\) in .*; expected ROOT/train/CLASS"),
    ],
)
def test_too_few_images_or_classes(make_images: MakePictures, counts: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fitted(make_images(counts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_fraction": 0.0}, r"val_fraction is 0.0; expected a share between 0 and 1; .*put images in val/"),
        ({"val_fraction": 20}, "val_fraction is 20; expected a share"),
        ({"test_fraction": -0.1}, "test_fraction is -0.1; expected a share"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction 0.5 and test_fraction 0.5 leave nothing"),
    ],
)
def test_impossible_fractions(make_images: MakePictures, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fitted(make_images({"cat": 5, "dog": 5}), **arguments)


def test_test_fraction_beside_a_test_folder_is_a_contradiction(make_images: MakePictures) -> None:
    root = make_images({"train/cat": 5, "train/dog": 5, "test/cat": 2})
    with pytest.raises(InputError, match=r"test_fraction is 0.1, but '.*' has test/ already"):
        fitted(root, test_fraction=0.1)


def test_preprocessing_that_nobody_filled_in_is_named(make_images: MakePictures) -> None:
    data = ImageFolder(make_images({"cat": 2, "dog": 2}), image_size=8, mean=(0.5,) * 3, crop_pct=1.0)
    with pytest.raises(InputError, match=r"std, interpolation not given .*give --data\.std, --data\.interpolation"):
        data.setup("fit")


def test_only_training_images_are_augmented(make_images: MakePictures, tmp_path: Path) -> None:
    root = make_images({"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1})
    left_to_right = Image.linear_gradient("L").rotate(90).convert("RGB")
    for split in ("train", "val"):
        left_to_right.save(f"{root}/{split}/a/000.png")
    data = fitted(root, crop_scale=(1.0, 1.0), hflip=1.0)
    train, val = (data.splits[split][0]["image"] for split in ("train", "val"))
    assert torch.equal(train, val.flip(2))
    assert not torch.equal(train, val)


def test_prediction_looks_for_no_training_folders(make_images: MakePictures) -> None:
    data = image_folder(make_images({"holiday": 2}))
    data.setup("predict")
    assert data.splits == {}
    batch = cast(Batch, next(iter(data.predict_dataloader())))
    assert batch["label"].tolist() == [-1, -1]
    assert batch["image"].shape == (2, 3, 8, 8)


def test_unreadable_images_are_refused_before_training(make_images: MakePictures) -> None:
    root = make_images({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1})
    assert fitted(root).split_note is None
    for name in ("train/cat/000.png", "val/dog/000.png"):
        Path(root, name).write_bytes(b"")
    with pytest.raises(
        InputError, match=r"of all 6 images, 2 cannot be read: '.*train/cat/000.png' \(the file is empty\), '.*val"
    ):
        fitted(root)


def test_runs_beside_the_classes_are_named_in_the_plan(make_images: MakePictures) -> None:
    root = make_images({"cat": 5, "dog": 5, "runs/vit/version_0/report": 1})
    data = fitted(root)
    assert data.class_names == ["cat", "dog"]
    assert "runs/ holds dropkey's runs: it is no class." in dict(data.plan_lines())["split"]
