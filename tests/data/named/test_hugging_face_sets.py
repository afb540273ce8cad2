import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dropkey_cli.data.named.hugging_face_sets import open_hugging_face
from dropkey_cli.data.reading import load_image
from dropkey_cli.errors import InputError
from tests.data.formats import CLASSES, hugging_face, pictures, write_folder, write_parquet

datasets = pytest.importorskip("datasets")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    datasets.disable_progress_bars()
    return write_folder(tmp_path / "photos")


def test_parquet_a_saved_set_and_a_folder_have_what_the_folder_has(photos: Path, tmp_path: Path) -> None:
    hugging_face(photos).save_to_disk(tmp_path / "saved")
    for folder in (write_parquet(tmp_path / "parquet", photos), tmp_path / "saved", photos):
        found = open_hugging_face("hfds/x", str(folder), data_dir=str(tmp_path / "cache"))
        assert found.class_names == list(CLASSES)
        assert list(found.splits) == ["train", "val"]
        for split, images in pictures(photos).items():
            given = found.splits[split]
            assert list(given.labels) == [label for _, label, _ in images]
            for place, (name, _, _) in enumerate(images):
                assert load_image(given.read(place)).tobytes() == load_image(photos / split / name).tobytes()
        assert found.splits["train"].names[3] == f"{folder.name}/train/000003"


def table(tmp_path: Path, **columns: Any) -> str:  # noqa: ANN401 - columns by name
    """A folder with one parquet file of ten rows."""
    features = datasets.Features({
        name: datasets.Image() if name.startswith("image") else datasets.ClassLabel(names=["a", "b"]) if name[:5] == "class"
        else datasets.Value("string" if isinstance(values[0], str) else "int64") if not isinstance(values[0], list)
        else datasets.Sequence(datasets.Value("int64")) for name, values in columns.items()
    })  # fmt: skip
    folder = tmp_path / f"table{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


IMAGES = [{"bytes": b"x", "path": None}] * 4


@pytest.mark.parametrize(
    ("columns", "options", "names", "labels"),
    [
        ({"image": IMAGES, "label": ["owl", "cat", "owl", "dog"]}, {}, ["cat", "dog", "owl"], [2, 0, 2, 1]),
        ({"image": IMAGES, "label": [0, 3, 0, 1]}, {}, ["0", "1", "2", "3"], [0, 3, 0, 1]),
        ({"image": IMAGES, "class": [0, 1, 1, 0], "n": [9] * 4}, {}, ["a", "b"], [0, 1, 1, 0]),
        ({"image": IMAGES, "class": [0, 1, 1, 0], "n": [1, 0, 1, 1]}, {"target_key": "n"}, ["0", "1"], [1, 0, 1, 1]),
        ({"image": IMAGES, "image2": IMAGES, "label": [0, 1, 1, 0]}, {"input_key": "image2"}, ["0", "1"], [0, 1, 1, 0]),
        ({"image": IMAGES, "label": [0, 1, 1, 0]}, {"splits": {"train": "train[1:3]"}}, ["0", "1"], [1, 1]),
    ],
)
def test_columns_and_classes_are_found(
    columns: dict[str, list[Any]], options: dict[str, Any], names: list[str], labels: list[int], tmp_path: Path
) -> None:
    found = open_hugging_face("hfds/x", table(tmp_path, **columns), data_dir=str(tmp_path / "cache"), **options)
    assert found.class_names == names
    assert list(found.splits["train"].labels) == labels


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"picture": ["a"] * 4, "label": [0] * 4},
            {},
            r"has 0 columns with images \(none\); expected one; give --data.input_key",
        ),
        ({"image": IMAGES, "image2": IMAGES, "label": [0] * 4}, {}, r"has 2 columns with images \(image, image2\)"),
        (
            {"image": IMAGES, "n": [0] * 4},
            {},
            r"has 0 columns with classes \(none\); expected one; give --data.target_key COLUMN",
        ),
        ({"image": IMAGES, "label": [0] * 4}, {"target_key": "lable"}, "no column 'lable'; expected one of image, label; give"),
        (
            {"image": IMAGES, "label": [0, 1, -2, 0]},
            {},
            "the column 'label' of 'hfds/x' has the class -2; expected numbers from 0",
        ),
        ({"image": IMAGES, "label": [0, None, 1, 0]}, {}, "has the class None; expected numbers from 0"),
        ({"image": IMAGES, "label": [[0, 1], [0], [1], []]}, {}, r"has the class \[0, 1\]; expected numbers from 0"),
        ({"image": IMAGES, "label": [0] * 4}, {"splits": {"train": "train[a:]"}}, r"splits has 'train\[a:\]'; expected a name"),
    ],
)
def test_columns_that_are_not_clear_are_refused(
    columns: dict[str, list[Any]], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        open_hugging_face("hfds/x", table(tmp_path, **columns), data_dir=str(tmp_path / "cache"), **options)


@pytest.mark.parametrize("name", ["somebody/nothing", "nothing", "/no/such/folder"])
def test_what_is_not_there_is_said_at_once_and_without_the_hub(name: str, tmp_path: Path) -> None:
    before, start = datasets.config.HF_HUB_OFFLINE, time.monotonic()
    with pytest.raises(
        InputError, match=r"^'hfds/x' cannot be loaded \(.*\); expected a folder, or a data set that lies in '.*cache'"
    ):
        open_hugging_face("hfds/x", name, data_dir=str(tmp_path / "cache"))
    assert time.monotonic() - start < 2
    assert datasets.config.HF_HUB_OFFLINE is before


def test_an_image_that_is_missing_is_an_error_of_that_image(photos: Path, tmp_path: Path) -> None:
    images = [{"bytes": b"x", "path": None}, None, {"bytes": b"", "path": None}]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    given = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0]}, features=features)
    datasets.DatasetDict({"train": given}).save_to_disk(tmp_path / "saved")
    read = open_hugging_face("hfds/x", str(tmp_path / "saved")).splits["train"].read
    with pytest.raises(OSError, match="no image there"):
        read(1)
    with pytest.raises(OSError, match="cannot identify image file"):
        load_image(read(0))
    with pytest.raises(OSError, match="the file is empty"):
        load_image(read(2))
    read = open_hugging_face("hfds/x", str(photos), data_dir=str(tmp_path / "cache")).splits["val"].read
    (photos / "val/cat/000.png").unlink()
    with pytest.raises(OSError, match=r"No such file .*val/cat/000\.png"):
        load_image(read(0))


def test_the_package_is_named_if_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"^'hfds/x' needs the package datasets \(.*\); pip install 'dropkey\[hf\]'$"):
        open_hugging_face("hfds/x", "x")
