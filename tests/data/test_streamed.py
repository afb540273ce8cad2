import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dropkey_cli.data.dataset import Batch
from dropkey_cli.data.loading import EvalSampler
from dropkey_cli.data.named.hugging_face_streams import Stream
from dropkey_cli.data.named_images import NamedImages
from dropkey_cli.data.streamed import StreamedImages, StreamSampler
from dropkey_cli.errors import InputError
from tests.data.formats import write_folder, write_streamable

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on: this process has threads
MODEL = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}
N = 24


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)  # 5 seconds after each shuffled epoch
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos")


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    return write_streamable(tmp_path / "set", photos)


def fitted(root: str, **options: Any) -> NamedImages:  # noqa: ANN401 - those of the data
    data = NamedImages(root, **{**MODEL, "num_workers": 0, "batch_size": 5, "shuffle_buffer": 100, **options})
    data.setup("fit")
    return data


def epoch(loader: object, number: int = 0, start: int = 0) -> list[Batch]:
    sampler = cast(Any, loader).sampler
    if isinstance(sampler, StreamSampler):
        sampler.start_at(number, start)
    return list(cast(Iterable[Batch], loader))


def images(batches: list[Batch]) -> Tensor:
    return torch.cat([batch["image"] for batch in batches])


def test_evaluation_is_that_of_a_copy(folder: Path, tmp_path: Path) -> None:
    copy, stream = (fitted(f"{kind}/{folder}", data_dir=str(tmp_path / "cache")) for kind in ("hfds", "hfids"))
    assert stream.class_names == copy.class_names
    assert {split: len(dataset) for split, dataset in stream.splits.items()} == {"train": N, "val": 15}
    for _ in range(2):  # an epoch later, too
        for expected, found in zip(epoch(copy.val_dataloader()), epoch(stream.val_dataloader()), strict=True):
            assert found["path"] == expected["path"]
            for key in ("image", "label", "index"):
                assert torch.equal(found[key], expected[key]), key


@pytest.mark.parametrize("buffer", [1, 4, 100])
def test_an_epoch_has_each_image_once_in_an_order_of_its_own(photos: Path, tmp_path: Path, buffer: int) -> None:
    folder = write_streamable(tmp_path / "set", photos, files=8)
    data = fitted(f"hfids/{folder}", shuffle_buffer=buffer, hflip=0.0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    loader = data.train_dataloader()
    orders = [epoch(loader, number) for number in range(3)]
    contents = [[image.numpy().tobytes() for image in images(order)] for order in orders]
    assert len(set(contents[0])) == N
    assert set(contents[0]) == set(contents[1]) == set(contents[2])
    assert contents[0] != contents[1] != contents[2]
    assert [int(index) for batch in orders[2] for index in batch["index"]] == list(range(2 * N, 3 * N))
    assert orders[2][0]["path"][:2] == ["set/train/epoch-2/000000", "set/train/epoch-2/000001"]
    assert sorted(int(label) for batch in orders[2] for label in batch["label"]) == [0] * 8 + [1] * 8 + [2] * 8


def test_training_is_reproducible_and_augmented_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = fitted(f"hfids/{folder}").train_dataloader()
    first = images(epoch(loader, 1))
    assert torch.equal(images(epoch(fitted(f"hfids/{folder}").train_dataloader(), 1)), first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    assert not torch.equal(images(epoch(fitted(f"hfids/{folder}").train_dataloader(), 1)), first)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_processes_that_load_images_change_nothing(folder: Path, num_workers: int) -> None:
    alone = fitted(f"hfids/{folder}")
    shared = fitted(f"hfids/{folder}", num_workers=num_workers)
    _ = shared.splits["train"][7], shared.splits["val"][7]  # opened before the fork
    for kind in (NamedImages.train_dataloader, NamedImages.val_dataloader):
        loader, expected = kind(shared), kind(alone)
        for number in (0, 1):
            assert torch.equal(images(epoch(loader, number)), images(epoch(expected, number)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_epoch_goes_on_where_it_was(folder: Path, num_workers: int) -> None:
    whole = images(epoch(fitted(f"hfids/{folder}").train_dataloader(), 2))
    resumed = fitted(f"hfids/{folder}", num_workers=num_workers).train_dataloader()
    _ = next(iter(cast(Iterable[Batch], resumed)))  # as Lightning does before the place is known
    assert torch.equal(images(epoch(resumed, 2, start=15)), whole[15:])
    assert torch.equal(images(epoch(resumed, 3)), images(epoch(fitted(f"hfids/{folder}").train_dataloader(), 3)))


@pytest.mark.parametrize("processes", [2, 5, 7])
def test_processes_share_the_images(folder: Path, processes: int) -> None:
    data = fitted(f"hfids/{folder}")
    val, train = data.splits["val"], cast(StreamedImages, data.splits["train"])
    dealt = [[*EvalSampler(val, num_replicas=processes, rank=rank)] for rank in range(processes)]
    seen = [[val[index] for index in own] for own in dealt]
    assert len({len(own) for own in seen}) == 1
    counted = [example["path"] for own in seen for example in own if example["path"]]
    assert sorted(counted) == [f"set/val/{place:06d}" for place in range(15)]
    steps = [[*StreamSampler(train, seed=5, num_replicas=processes, rank=rank)] for rank in range(processes)]
    assert [len(own) for own in steps] == [-(-N // processes)] * processes
    in_order = [draw.position for row in zip(*steps, strict=True) for draw in row]
    assert in_order == [min(place, N - 1) for place in range(len(in_order))]


def test_a_stream_is_read_once_and_only_own_images_are_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    val = cast(StreamedImages, fitted(f"hfids/{folder}").splits["val"])
    opened, decoded = [], []
    examples, content = Stream.examples, Stream.content

    def opening(self: Stream, **order: Any) -> object:  # noqa: ANN401 - those of examples
        opened.append(self.name)
        return examples(self, **order)

    def decoding(self: Stream, example: dict[str, Any]) -> object:
        decoded.append(self.name)
        return content(self, example)

    monkeypatch.setattr(Stream, "examples", opening)
    monkeypatch.setattr(Stream, "content", decoding)
    for index in EvalSampler(val, num_replicas=2, rank=1):
        _ = val[index]
    assert (len(opened), len(decoded)) == (1, 7)


def test_a_part_of_a_split_is_held_out_by_its_name(folder: Path) -> None:
    data = fitted(f"hfids/{folder}", splits={"train": "train[6:]", "val": "train[:6]"}, shuffle_buffer=5)
    assert {split: len(dataset) for split, dataset in data.splits.items()} == {"train": 18, "val": 6}
    assert [int(label) for batch in epoch(data.val_dataloader()) for label in batch["label"]] == [0] * 6
    labels = sorted(int(label) for batch in epoch(data.train_dataloader()) for label in batch["label"])
    assert labels == [0] * 2 + [1] * 8 + [2] * 8


def test_a_data_set_that_another_process_gets_begins_anew(folder: Path) -> None:
    val = fitted(f"hfids/{folder}").splits["val"]
    expected = [val[place]["image"] for place in (3, 4)]
    copy = pickle.loads(pickle.dumps(val))
    assert torch.equal(copy[3]["image"], expected[0])
    assert torch.equal(val[4]["image"], expected[1])


def test_classes_go_by_name_as_those_of_a_copy(folder: Path, tmp_path: Path) -> None:
    data = fitted(f"hfids/{folder}", class_names=["owl", "bird", "dog", "cat"])
    assert [data.splits["val"][place]["label"] for place in (0, 5, 10)] == [3, 2, 0]
    with pytest.raises(InputError, match=r"has 2 unknown class\(es\): 'cat', 'owl'; expected only the 2 known"):
        fitted(f"hfids/{folder}", class_names=["cot", "dog"])


def test_damaged_images_are_named_or_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "val/cat/002.png").write_bytes(b"no image")
    folder = write_streamable(tmp_path / "set", photos)
    with pytest.raises(InputError, match=r"cannot read 'set/val/000002' \(cannot identify image file.*skip"):
        _ = fitted(f"hfids/{folder}").splits["val"][2]
    val = fitted(f"hfids/{folder}", on_error="skip").splits["val"]
    assert "cannot identify image file" in val[2]["error"]
    assert val[3]["error"] == ""


@pytest.mark.parametrize(
    ("count", "message"), [(16, "has 16 images, but it ended after 15"), (14, "but it goes on after them")]
)
def test_another_number_of_images_than_is_said_is_refused(count: int, message: str, photos: Path, tmp_path: Path) -> None:
    folder = write_streamable(tmp_path / "set", photos, counts={"validation": count})
    val = fitted(f"hfids/{folder}").splits["val"]
    with pytest.raises(InputError, match=message):
        for place in range(count):
            _ = val[place]


def test_a_file_that_breaks_off_is_one_line(folder: Path) -> None:
    last = sorted(folder.glob("data/validation*"))[-1]
    val = fitted(f"hfids/{folder}").splits["val"]
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(InputError, match=r"the stream of 'set/val' broke off after 10 images \(.*\); .*--resume"):
        for place in range(15):
            _ = val[place]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda folder: fitted(f"hfids/{folder}", repeats=3), "repeats is 3; expected 1 for a stream"),
        (lambda folder: fitted(f"hfids/{folder}", max_train_images=9), "max_train_images is 9; expected null for a stream"),
        (
            lambda folder: fitted(f"hfids/{folder}", splits={"train": "train"}),
            r"has no split for val; .*--data.splits '\{train: \"train\[1000:\]\", val: \"train\[:1000\]\"\}'",
        ),
        (lambda folder: fitted(f"hfids/{folder}", test_fraction=0.1), "has no split for test; expected one"),
        (lambda folder: fitted(f"hfids/{folder}").splits["train"].class_counts(3), "class_weights is 'balanced', but a stream"),
    ],
)
def test_what_cannot_be_done_on_a_stream_is_refused(use: Callable[[Path], object], message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        use(folder)


def test_loading_processes_are_few_unless_asked_for() -> None:
    assert NamedImages("hfids/x").num_workers == 1
    assert NamedImages("hfids/x", num_workers=3).num_workers == 3
