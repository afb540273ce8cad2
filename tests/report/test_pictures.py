import base64
import io
import re
import xml.etree.ElementTree
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

from dropkey_cli.report.pictures import INK, data_address, drawing, panel, to_png, to_svg


def drawn(title: str = "loss", name: str = "one") -> str:
    with drawing():
        figure, axes = panel()
        axes.plot([1, 2, 3])
        axes.imshow([[0, 1]])
        axes.set_title(title)
        return to_svg(figure, name)


def test_svg_is_the_same_at_every_drawing_and_takes_the_page_s_colour() -> None:
    svg = drawn()
    assert svg == drawn()
    assert INK not in svg
    assert "currentColor" in svg
    xml.etree.ElementTree.fromstring(svg)


def test_two_pictures_of_a_page_share_no_id() -> None:
    ids = [set(re.findall(r'\bid="([^"]*)"', drawn(name=name))) for name in ("one", "two")]
    assert len(ids[0]) == len(ids[1]) > 5
    assert not ids[0] & ids[1]
    used = set(re.findall(r'href="#([^"]*)"', drawn())) | set(re.findall(r"url\(#([^)]*)\)", drawn()))
    assert used <= ids[0]


@pytest.mark.parametrize("name", ["<b>x</b>", "$a$b$", "$", "猫", "</svg><script>alert(1)</script>", "\"&'", "_hidden"])
def test_names_are_text(name: str) -> None:
    texts = [element.text for element in xml.etree.ElementTree.fromstring(drawn(name)).iter() if element.tag.endswith("text")]
    assert name in texts


def test_matplotlib_s_settings_come_back() -> None:
    with matplotlib.rc_context({"axes.titlesize": 33, "text.color": "red"}):
        before = dict(matplotlib.rcParams)
        drawn()
        assert dict(matplotlib.rcParams) == before


def test_png_is_the_same_at_every_drawing(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        with drawing():
            figure, _ = panel()
            to_png(figure, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("photo", [True, False])
def test_the_address_of_a_picture_is_the_picture(photo: bool) -> None:
    pixels = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    kind, _, code = data_address(Image.fromarray(pixels), photo=photo).partition(";base64,")
    found = Image.open(io.BytesIO(base64.b64decode(code)))
    assert (kind, found.format) == (("data:image/jpeg", "JPEG") if photo else ("data:image/png", "PNG"))
    assert photo or found.tobytes() == pixels.tobytes()
