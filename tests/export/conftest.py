from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with ten images of several sizes, and a file that is none."""
    folder = tmp_path / "photos" / "train" / "Löwe"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = generator.integers(0, 256, (50 + number, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "00.png").write_text("no image")
    return tmp_path / "photos"
