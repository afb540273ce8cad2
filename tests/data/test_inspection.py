from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from dropkey_cli.data.inspection import NOTES, content_hash, inspect_file
from tests.data.odd_images import ODD, PICTURE, write_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    write_all(folder)
    return folder


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_file_gets_its_verdict_and_its_notes(name: str, folder: Path) -> None:
    finding = inspect_file(str(folder / name))
    if ODD[name].reason:
        assert finding.notes == ()
        with pytest.raises(OSError, match=ODD[name].reason):
            raise OSError(finding.error)
    else:
        assert (finding.error, finding.notes) == ("", ODD[name].notes)
        assert finding.size == len((folder / name).read_bytes())


def test_every_note_but_that_on_large_images_is_made_by_some_file() -> None:
    assert {note for odd in ODD.values() for note in odd.notes} == NOTES.keys() - {"large"}


def test_large_images_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "a.png")
    for limit, notes in ((32 * 16, ()), (32 * 16 - 1, ("large",))):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert inspect_file(str(tmp_path / "a.png")).notes == notes


def test_a_damaged_second_frame_is_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(self: GifImageFile) -> bool:
        raise SyntaxError("broken GIF")

    PICTURE.convert("L").save(tmp_path / "a.gif")
    before = inspect_file(str(tmp_path / "a.gif")).notes
    monkeypatch.setattr(GifImageFile, "is_animated", property(damaged))
    assert set(inspect_file(str(tmp_path / "a.gif")).notes) == {*before, "frames"} != set(before)


def test_hashes_are_equal_where_the_bytes_are(tmp_path: Path) -> None:
    big = np.random.default_rng(0).bytes(3_000_000)
    for name, data in (("a", big), ("b", big), ("c", big[:-1] + b"!")):
        (tmp_path / name).write_bytes(data)
    first, second, third = (content_hash(str(tmp_path / name)) for name in "abc")
    assert first == second != third
    assert content_hash(str(tmp_path / "gone")) == b""
