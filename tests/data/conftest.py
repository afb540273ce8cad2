from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

MakePictures = Callable[[Mapping[str, int]], str]


@pytest.fixture
def make_images(tmp_path: Path) -> MakePictures:
    """Writes {"folder": number of images} under one root and gives the root; every image has its own colour."""
    colours = iter(range(1, 1 << 24, 4099))

    def make(counts: Mapping[str, int]) -> str:
        for folder, count in counts.items():
            (tmp_path / "root" / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                colour = next(colours)
                image = Image.new("RGB", (12, 10), (colour >> 16, (colour >> 8) & 255, colour & 255))
                image.save(tmp_path / "root" / folder / f"{number:03d}.png")
        return str(tmp_path / "root")

    return make
