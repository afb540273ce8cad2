import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dropkey_cli.data import kept_listing
from dropkey_cli.data.class_folders import find_classes, list_samples
from dropkey_cli.data.image_folder import ImageFolder

OLD = time.time() - 3600


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders; every listing of them counts as slow, and as made long after their last change."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_listing, "SLOW", -1.0)
    monkeypatch.setattr(kept_listing, "SETTLED", -3600.0)
    for name in ("cat/1.png", "cat/deep/er/2.png", "dog/3.png", "dog/notes.txt"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/4.png").touch()
    (tmp_path / "photos/dog/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/dog/mount").symlink_to(tmp_path / "not mounted")
    (tmp_path / "photos/bird").symlink_to(tmp_path / "no birds yet")
    return tmp_path / "photos"


def found(root: Path) -> list[str]:
    """What is listed, relative to the folder."""
    return [sample.path.removeprefix(f"{root}/") for sample in list_samples(root, find_classes(root))]


def kept_files() -> list[Path]:
    return list(kept_listing.cache_folder().rglob("*"))[1:]


FIRST = ["cat/1.png", "cat/deep/er/2.png", "dog/3.png", "dog/linked/4.png"]


def test_a_kept_listing_is_read_instead_of_the_folders(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(photos) == FIRST
    (file,) = kept_files()
    kept = json.loads(file.read_text())
    kept["listing"]["cat"] = ["kept.png"]  # which shows where the next listing comes from
    file.write_text(json.dumps(kept))
    assert found(photos) == ["cat/kept.png", *FIRST[2:]]
    monkeypatch.chdir(photos.parent)
    assert found(Path("photos")) == ["cat/kept.png", *FIRST[2:]]  # the same folder by another name
    monkeypatch.chdir(photos)
    assert found(Path()) == ["cat/kept.png", *FIRST[2:]]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()


def add_without_a_trace(root: Path) -> None:
    """As rsync does: the folder's time is what it was."""
    touch(root / "cat/0.png")
    os.utime(root / "cat", (OLD, OLD))


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "added": (lambda root: touch(root / "cat/deep/er/5.png"), sorted([*FIRST, "cat/deep/er/5.png"])),
    "removed": (lambda root: (root / "dog/3.png").unlink(), [name for name in FIRST if name != "dog/3.png"]),
    "renamed": (lambda root: (root / "cat/1.png").rename(root / "cat/0.png"), ["cat/0.png", *FIRST[1:]]),
    "in a linked folder": (lambda root: touch(root.parent / "elsewhere/6.png"), [*FIRST, "dog/linked/6.png"]),
    "in a folder that was empty": (lambda root: touch(root / "cat/deep/7.png"), sorted([*FIRST, "cat/deep/7.png"])),
    "a new class": (lambda root: touch(root / "ant/8.png"), ["ant/8.png", *FIRST]),
    "a link that led nowhere": (lambda root: touch(root.parent / "not mounted/9.png"), [*FIRST, "dog/mount/9.png"]),
    "a class that led nowhere": (lambda root: touch(root.parent / "no birds yet/9.png"), ["bird/9.png", *FIRST]),
    "a time set back": (add_without_a_trace, ["cat/0.png", *FIRST]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_anywhere_in_the_folders_is_seen(change: str, photos: Path) -> None:
    os.utime(photos / "cat", (OLD, OLD))
    assert found(photos) == FIRST
    assert len(kept_files()) == 1
    act, expected = CHANGES[change]
    act(photos)
    assert found(photos) == expected


def test_a_folder_replaced_by_another_is_seen(photos: Path) -> None:
    assert found(photos) == FIRST
    (photos.parent / "other").mkdir()
    (photos.parent / "other/5.png").touch()
    (photos / "dog/linked").unlink()
    (photos / "dog/linked").symlink_to(photos.parent / "other")
    assert found(photos) == [*FIRST[:3], "dog/linked/5.png"]


def test_only_slow_listings_of_settled_folders_are_kept(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_listing, "SLOW", 3600.0)
    assert found(photos) == FIRST
    monkeypatch.setattr(kept_listing, "SLOW", -1.0)
    monkeypatch.setattr(kept_listing, "SETTLED", 60.0)  # a change within a time stamp's step would not show
    assert found(photos) == FIRST
    assert kept_files() == []


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b'{"format": 1}', b"\xff", b'{"format": 0, "key": "", "stamps": {}, "listing": 1}']
)
def test_a_damaged_file_is_made_anew(damage: bytes, photos: Path) -> None:
    assert found(photos) == FIRST
    (file,) = kept_files()
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert found(photos) == FIRST
    assert json.loads(file.read_bytes())["listing"] == json.loads(whole)["listing"]


def test_a_cache_that_cannot_be_written_stops_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert found(photos) == FIRST


def test_names_that_are_no_text_are_kept(photos: Path) -> None:
    with open(os.path.join(os.fsencode(photos), b"cat", b"caf\xe9\n.png"), "wb"):
        pass
    first = found(photos)
    assert os.fsencode(first[1]) == b"cat/caf\xe9\n.png"
    assert len(kept_files()) == 1
    assert found(photos) == first


def test_one_process_lists_and_the_others_read_its_list(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: dict[str, Any] = {
        "image_size": 8,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }

    def prepare(world_size: int, stage: str, root: Path = photos) -> list[Path]:
        data = ImageFolder(str(root), **model)
        data.trainer = SimpleNamespace(world_size=world_size, state=SimpleNamespace(fn=stage))  # type: ignore[assignment]
        data.prepare_data()
        return kept_files()

    assert prepare(1, "fit") == []  # which lists in setup
    assert prepare(2, "predict") == []
    assert prepare(2, "fit", photos / "none") == []  # which every process refuses in setup
    assert len(prepare(2, "fit")) == 1
    monkeypatch.setattr("dropkey_cli.data.class_folders.walk_images", None)  # setup walks no folder
    assert found(photos) == FIRST
