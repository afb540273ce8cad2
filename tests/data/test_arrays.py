import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dropkey_cli.data.arrays import check_header, load_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 6), dtype=np.uint8)


def array_file(folder: Path, array: Any, name: str = "a.npy") -> str:  # noqa: ANN401 - anything that numpy saves
    np.save(folder / name, array)
    return str(folder / name)


def as_tensor(picture: Any) -> torch.Tensor:  # noqa: ANN401
    if isinstance(picture, Image.Image):
        return torch.from_numpy(np.atleast_3d(np.array(picture))).movedim(2, 0)
    assert isinstance(picture, torch.Tensor)
    return picture


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_an_array_is_read_as_it_is(tmp_path: Path, channels: int) -> None:
    pixels = PIXELS[..., :channels]
    for array in (pixels, np.asfortranarray(pixels), pixels[..., 0] if channels == 1 else pixels):
        tensor = as_tensor(load_picture(array_file(tmp_path, array), channels))
        assert tensor.dtype == torch.uint8
        np.testing.assert_array_equal(tensor, pixels.transpose(2, 0, 1))


def test_16_bits_are_scaled_to_8(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 128, 2)
    tensor = as_tensor(load_picture(array_file(tmp_path, values), 2))
    np.testing.assert_array_equal(tensor, np.rint(values / 65535 * 255).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS[..., :5], r"an array \(5, 7, 5\) of uint8, expected \(height, width, 6\) of uint8 or uint16"),
        (PIXELS[0], r"an array \(7, 6\) of uint8"),
        (PIXELS[None], r"an array \(1, 5, 7, 6\)"),
        (PIXELS.astype(np.float32), "of float32, expected .* uint8 or uint16"),
        (PIXELS.astype(np.int16), "of int16"),
        (PIXELS[:0], r"an array \(0, 7, 6\)"),
        (np.array([{}], dtype=object), "no array that can be read .ValueError"),  # a pickle, which could run code
    ],
)
def test_other_arrays_are_refused_by_header_and_reading_alike(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = array_file(tmp_path, array)
    for read in (load_picture, check_header):
        with pytest.raises(OSError, match=message):
            read(path, 6)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = Path(array_file(tmp_path, PIXELS)).read_bytes()
    contents = {"short": whole[:-1], "header": whole[:30], "text": b"x" * 300, "version": whole[:6] + b"\x09" + whole[7:]}
    paths = []
    for name, content in contents.items():
        paths.append(tmp_path / f"{name}.npy")
        paths[-1].write_bytes(content)
    with zipfile.ZipFile(tmp_path / "zip.npy", "w") as archive:
        archive.writestr("a", b"")
    (tmp_path / "empty.npy").write_bytes(b"")
    for path in (*paths, tmp_path / "zip.npy", tmp_path / "empty.npy", tmp_path / "missing.npy", tmp_path):
        with pytest.raises(OSError, match=r"\w"):
            load_picture(path, 6)
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(OSError, match="it is a pipe, not a file"):
        check_header(tmp_path / "pipe.npy", 6)


def test_an_array_as_large_as_pillow_refuses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = array_file(tmp_path, PIXELS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 17)
    with pytest.raises(OSError, match="it has 35 pixels, more than 34"):
        check_header(path, 6)


def test_image_files_give_grey_rgb_or_rgba_and_no_other_number(tmp_path: Path) -> None:
    rgba = Image.fromarray(PIXELS[..., :4], mode=None)
    path = str(tmp_path / "a.png")
    rgba.save(path)
    assert torch.equal(as_tensor(load_picture(path, 4)), torch.from_numpy(PIXELS[..., :4]).movedim(2, 0))
    white = Image.new("RGBA", rgba.size, "white")
    on_white = Image.alpha_composite(white, rgba)
    assert torch.equal(as_tensor(load_picture(path, 3)), as_tensor(on_white.convert("RGB")))
    assert torch.equal(as_tensor(load_picture(path, 1)), as_tensor(on_white.convert("L")))
    for read in (load_picture, check_header):
        with pytest.raises(OSError, match=r"it is no array; 5 channels are read from .npy files \(height, width, 5\)"):
            read(path, 5)
