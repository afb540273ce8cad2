import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from dropkey_cli.data.named.hugging_face_streams import Stream, open_stream
from dropkey_cli.data.reading import load_image
from dropkey_cli.errors import InputError
from tests.data.formats import CLASSES, hugging_face, pictures, write_folder, write_parquet, write_streamable

datasets = pytest.importorskip("datasets")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)  # 5 seconds after each shuffled epoch
    return write_folder(tmp_path / "photos")


def contents(stream: Stream) -> list[tuple[int, bytes]]:
    """Label and pixels of each image, in order."""
    return [(example["label"], load_image(stream.content(example)).tobytes()) for example in stream.examples()]


def test_a_stream_has_what_the_folder_has_in_its_order(photos: Path, tmp_path: Path) -> None:
    hugging_face(photos).save_to_disk(tmp_path / "saved")
    for folder in (write_streamable(tmp_path / "parquet", photos), tmp_path / "saved"):
        found = open_stream("hfids/x", str(folder))
        assert found.class_names == list(CLASSES)
        for split, images in pictures(photos).items():
            stream = found.splits[split]
            assert (stream.name, stream.count) == (f"{folder.name}/{split}", len(images))
            expected = [(label, load_image(photos / split / name).tobytes()) for name, label, _ in images]
            assert contents(stream) == expected


def test_an_image_is_read_from_a_file_that_lies_elsewhere(photos: Path, tmp_path: Path) -> None:
    stream = open_stream("hfids/x", str(write_streamable(tmp_path / "set", photos))).splits["val"]
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", photos)
    for path in (f"zip://val/cat/002.png::{archive}", f"file://{photos}/val/cat/002.png", f"{photos}/val/cat/002.png"):
        found = load_image(stream.content({"image": {"bytes": None, "path": path}}))
        assert found.tobytes() == load_image(photos / "val/cat/002.png").tobytes()
    with pytest.raises(OSError, match=r"none\.png"):
        stream.content({"image": {"bytes": None, "path": f"file://{photos}/none.png"}})


@pytest.mark.parametrize(
    ("span", "expected"), [("[2:5]", [2, 3, 4]), ("[:3]", [0, 1, 2]), ("[13:]", [13, 14]), ("[9:99]", [*range(9, 15)])]
)
def test_a_part_of_a_split_is_that_of_a_list(span: str, expected: list[int], photos: Path, tmp_path: Path) -> None:
    folder = str(write_streamable(tmp_path / "set", photos))
    every = contents(open_stream("hfids/x", folder).splits["val"])
    part = open_stream("hfids/x", folder, splits={"val": f"validation{span}"}).splits["val"]
    assert part.count == len(expected)
    assert contents(part) == [every[place] for place in expected]


def test_a_large_buffer_mixes_all_files_and_a_small_one_the_files(photos: Path, tmp_path: Path) -> None:
    stream = open_stream("hfids/x", str(write_streamable(tmp_path / "set", photos, files=8))).splits["train"]
    in_order = [example["image"]["bytes"] for example in stream.examples()]
    for buffer_size in (1, 100):
        mixed = [[e["image"]["bytes"] for e in stream.examples(seed=seed, buffer_size=buffer_size)] for seed in (1, 2, 1)]
        assert mixed[0] == mixed[2] != mixed[1]
        assert sorted(mixed[0]) == sorted(mixed[1]) == sorted(in_order)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_key": "photo"}, "'hfids/x' has no column 'photo'; expected one of image, label; give --data.input_key"),
        ({"splits": {"train": "training"}}, "'hfids/x' has no split 'training'; expected one of train, validation"),
        (
            {"splits": {"train": "train[24:]"}},
            r"splits has 'train\[24:\]', in which there is no image; expected some of the 24",
        ),
        ({"splits": {"train": "train[a:]"}}, r"splits has 'train\[a:\]'; expected a name"),
    ],
)
def test_columns_and_splits_that_are_not_clear_are_refused(
    options: dict[str, Any], message: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        open_stream("hfids/x", str(write_streamable(tmp_path / "set", photos)), **options)


def test_a_stream_of_unknown_length_is_refused(photos: Path, tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "set", photos)
    with pytest.raises(InputError, match=r"'hfids/x' does not say how many images its split 'train' has; .*--data.root hfds/"):
        open_stream("hfids/x", str(folder))


def test_what_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^'hfids/x' cannot be streamed \(.*\); expected a folder, or a data set of the Hub"):
        open_stream("hfids/x", "somebody/nothing", data_dir=str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"^'hfids/x' needs the package datasets \(.*\); pip install 'dropkey\[hf\]'$"):
        open_stream("hfids/x", "x")


def test_a_missing_image_is_an_error_of_that_image(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    given = datasets.Dataset.from_dict({"image": [{"bytes": b"x", "path": None}, None], "label": [0, 1]}, features=features)
    datasets.DatasetDict({"train": given}).save_to_disk(tmp_path / "saved")
    found = open_stream("hfids/x", str(tmp_path / "saved"))
    assert found.class_names == []
    stream = found.splits["train"]
    with pytest.raises(OSError, match="no image there"):
        stream.content(next(islice(stream.examples(), 1, None)))
