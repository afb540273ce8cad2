import base64
import io

import pytest
import torch
from PIL import Image
from torch import Tensor

from dropkey_cli.report.images import PHOTO, SIDE, overlay, thumbnail, to_picture


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_small_images_keep_every_pixel() -> None:
    image = torch.randint(0, 256, (3, 8, 8)).byte()
    assert opened(thumbnail(image)).tobytes() == to_picture(image).tobytes()


@pytest.mark.parametrize(("values", "shown"), [
    ([9], (9, 9, 9)), ([9, 8], (9, 9, 9)), ([9, 8, 7], (9, 8, 7)), ([9, 8, 7, 255], (9, 8, 7)), ([9, 8, 7, 0], (255, 255, 255)),
    ([9, 8, 7, 6, 5], (9, 8, 7)),
])  # fmt: skip
def test_images_of_any_number_of_channels_are_shown(values: list[int], shown: tuple[int, ...]) -> None:
    image = torch.tensor(values, dtype=torch.uint8)[:, None, None].expand(-1, 8, 8)
    assert opened(thumbnail(image)).getpixel((3, 3)) == shown
    assert opened(overlay(image, torch.ones(2, 2), largest=1.0)).size == (SIDE, SIDE)


def test_photos_become_small() -> None:
    found = opened(thumbnail(torch.zeros(3, 384, 512, dtype=torch.uint8)))
    assert (found.format, found.size) == ("JPEG", (SIDE, SIDE * 3 // 4))


@pytest.mark.parametrize("size", [16, PHOTO + 1])
def test_attention_lies_over_its_part_of_the_image(size: int) -> None:
    attention = torch.tensor([[0.0, 0.2], [0.8, 0.0]])
    picture = opened(overlay(torch.full((3, size, size), 128, dtype=torch.uint8), attention, largest=0.8)).convert("L")
    corners = [picture.getpixel((x, y)) for x, y in ((40, 40), (120, 40), (40, 120), (120, 120))]
    assert corners[2] > corners[1] > corners[0]  # type: ignore[operator]  # of one channel
    assert abs(corners[0] - corners[3]) < 5  # type: ignore[operator]


def test_no_attention_at_all_is_drawn() -> None:
    attention: Tensor = torch.zeros(2, 2)
    assert opened(overlay(torch.zeros(3, 16, 16, dtype=torch.uint8), attention, largest=0.0)).size == (SIDE, SIDE)
