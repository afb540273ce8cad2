import os
import socket
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps, PngImagePlugin

from dropkey_cli.data.reading import is_image_file, list_images, load_image, open_image, orientation
from dropkey_cli.errors import InputError


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_load_image_turns_the_image_as_exif_says(tmp_path: Path, name: str) -> None:
    red_left = Image.new("RGB", (64, 32), "blue")
    red_left.paste("red", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: the left half becomes the top half
    red_left.save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as stored:
        assert stored.getexif().get(0x0112) == 6
    image = np.asarray(load_image(tmp_path / name)).astype(int)
    assert image.shape == (64, 32, 3)
    np.testing.assert_allclose(image[8, 16], (255, 0, 0), atol=8)
    np.testing.assert_allclose(image[56, 16], (0, 0, 255), atol=8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_load_image_scales_16_bit_grey(tmp_path: Path, name: str) -> None:
    grey = np.array([[0, 256, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / name)
    expected = np.rint(grey / 65535 * 255)
    image = load_image(tmp_path / name)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[..., 1], expected)  # 0, 1, 128, 255


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0, 70000]], dtype=np.int32), r"grey values lie in 0\.\.70000"),
        (np.array([[-5, 7]], dtype=np.int32), r"grey values lie in -5\.\.7"),
        (np.array([[0.0, 0.5]], dtype=np.float32), "32-bit floats"),
    ],
)
def test_load_image_refuses_pixels_of_unknown_range(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(OSError, match=message):
        load_image(tmp_path / "a.tif")


def test_load_image_puts_transparency_on_white(tmp_path: Path) -> None:
    half_red = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half_red.putpixel((1, 0), (255, 0, 0, 255))
    half_red.save(tmp_path / "rgba.png")
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (0, 255))
    grey.save(tmp_path / "la.png")
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert np.asarray(load_image(tmp_path / "rgba.png")).tolist() == [[[255, 255, 255], [255, 0, 0]]]
    assert np.asarray(load_image(tmp_path / "la.png")).tolist() == [[[255, 255, 255], [0, 0, 0]]]
    assert np.asarray(load_image(tmp_path / "palette.png")).tolist() == [[[255, 255, 255], [255, 0, 0]]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_load_image_gives_rgb_for_every_mode(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (4, 4), "white").convert(mode).save(tmp_path / "a.tif")
    image = load_image(tmp_path / "a.tif")
    assert image.mode == "RGB"
    assert np.asarray(image).min() == 255


@pytest.mark.parametrize("content", [b"", b"not an image", b"half"])
def test_load_image_raises_os_error_for_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:500] if content == b"half" else content)
    with pytest.raises(OSError, match=r"broken\.png|truncated|^the file is empty$"):
        load_image(path)


def test_load_image_turns_what_decoders_raise_into_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match=r"DecompressionBombError: .*10000 pixels"):
        load_image(tmp_path / "big.png")


def test_load_image_gives_no_warning_and_makes_none_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (10, 10), "red").save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Image.DecompressionBombWarning, match="100 pixels"):
            Image.open(tmp_path / "large.png")
        assert np.asarray(load_image(tmp_path / "large.png")).max(axis=(0, 1)).tolist() == [255, 0, 0]
        with pytest.raises(UserWarning, match="ours"):  # the filters are as they were
            warnings.warn("ours", stacklevel=1)


def test_an_error_always_has_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def fail(image: Image.Image) -> None:
        raise OSError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(OSError, match=r"^OSError: "):
        load_image(tmp_path / "a.png")


def test_open_image_reads_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("read"))
    with open_image(tmp_path / "a.png") as image:
        assert image.size == (4, 3)


@pytest.mark.parametrize("turn", range(9))
def test_orientation_is_that_of_pillows_own_function(tmp_path: Path, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    image = Image.fromarray(np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3))
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
        assert orientation(stored) == (turn if 1 <= turn <= 8 else 1)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), expected)


def test_a_postscript_program_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **options: pytest.fail("Ghostscript was called"))
    with pytest.raises(OSError, match=r"^it is a PostScript program, not an image; save it as PNG or JPEG$"):
        load_image(tmp_path / "a.jpg")


def test_load_image_says_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    for name, reason in (
        ("folder.jpg", "^it is a folder, not a file$"),
        ("link.jpg", "^it is a link to 'nowhere', which does not"),
    ):
        with pytest.raises(OSError, match=reason):
            load_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(OSError, match=r"^ValueError: embedded null byte$"):
        load_image("a\0b.jpg")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_load_image_refuses_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 characters
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("a.jpg")
        with pytest.raises(OSError, match=r"^it is a socket, not a file$"):
            load_image("a.jpg")


def test_is_image_file_knows_extensions_in_any_case_and_skips_hidden_files() -> None:
    assert is_image_file("a/b.JPG")
    assert is_image_file(".hidden/b.webp")  # only the name counts
    assert not is_image_file("a/._b.jpg")
    assert not is_image_file("a/b.txt")


def test_list_images_searches_sub_folders_in_order(tmp_path: Path) -> None:
    expected = [save(tmp_path / name) for name in ("a.png", "b/1.PNG", "b/c/2.jpg", "d.bmp")]
    for name in (".e.png", ".git/f.png", "b/.cache/g.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    assert list_images(tmp_path) == [str(path) for path in expected]


def test_list_images_sorts_as_paths_do_and_leaves_the_current_folder_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.png", "a/z.png", "a-b/c.png", "a b.png", "B.png", "a/b/c.png", "b/10.png", "b/9.png", "é.png", "a/b.png"]
    for name in names:
        save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert list_images(".") == [str(path) for path in sorted(map(Path, names))]


def test_list_images_goes_around_no_circle(tmp_path: Path) -> None:
    save(tmp_path / "a/b/1.png")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/b/here").symlink_to(tmp_path / "a/b")
    assert list_images(tmp_path) == [str(tmp_path / "a/b/1.png")]


def test_list_images_follows_links_to_folders(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    assert list_images(tmp_path / "root") == [str(tmp_path / "root/link/a.png")]


def test_list_images_takes_a_named_file_of_any_extension(tmp_path: Path) -> None:
    path = tmp_path / "upload.dat"
    path.write_bytes(b"")
    assert list_images(path) == [str(path)]


def test_list_images_refuses_what_holds_no_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing' does not exist; .*check the path"):
        list_images(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty' holds no images; expected files ending in \.jpg"):
        list_images(tmp_path / "empty")


def test_list_images_loses_nothing_beside_links_that_lead_nowhere(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert list_images(tmp_path) == [str(tmp_path / "a.png")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_list_images_lists_a_pipe_and_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list_images(tmp_path) == list_images(tmp_path / "pipe.jpg") == [str(tmp_path / "pipe.jpg")]
    with pytest.raises(OSError, match=r"^it is a pipe, not a file$"):
        load_image(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_kind_of_file_is_read_as_grey_and_with_transparency(tmp_path: Path, mode: str) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    path = tmp_path / "a.tif"
    image.save(path)
    expected = np.where(grey > 127, 255, 0) if mode == "1" else grey
    if mode == "1":
        expected = np.asarray(image).astype(int) * 255
    tolerance = 2 if mode in ("P", "YCbCr", "CMYK") else 0
    as_grey, as_rgba = load_image(path, channels=1), load_image(path, channels=4)
    assert (as_grey.mode, as_rgba.mode) == ("L", "RGBA")
    np.testing.assert_allclose(np.asarray(as_grey).astype(int), expected, atol=tolerance)
    np.testing.assert_allclose(np.asarray(as_rgba).astype(int)[..., 1], expected, atol=tolerance)
    assert np.asarray(as_rgba)[..., 3].min() == 255


def test_arrays_are_images_where_more_than_colours_are_read() -> None:
    names = ("a.JPG", "a.npy", ".a.npy", "a.txt")
    listed = {n: [name for name in names if is_image_file(name, channels=n)] for n in (1, 3, 4, 7)}
    assert listed == {1: ["a.JPG", "a.npy"], 3: ["a.JPG"], 4: ["a.JPG", "a.npy"], 7: ["a.npy"]}


def test_list_images_finds_arrays_and_says_what_it_looks_for(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.zeros((2, 2, 5), np.uint8))
    assert list_images(tmp_path, channels=5) == [str(tmp_path / "b.npy")]
    (tmp_path / "b.npy").unlink()
    with pytest.raises(InputError, match=r"holds no images; expected files ending in \.npy; check"):
        list_images(tmp_path, channels=5)


@pytest.mark.parametrize(("content", "message"), [(b"", "the file is empty"), (b"nope", "cannot identify image file")])
def test_content_in_memory_is_refused_without_its_address(content: bytes, message: str) -> None:
    with pytest.raises(OSError, match=f"^{message}$"):
        load_image(BytesIO(content))
