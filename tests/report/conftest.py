from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dropkey_cli.report.predictions import Outcomes, Predictions, read_predictions, write_predictions

NAMES = ["<b>cat</b>", "$dog", 'a "fox" & more', "猫\udcff"]


@pytest.fixture
def outcomes() -> Callable[..., Outcomes]:
    """What a fairly good network said of random images; the last class has none."""

    def make(num_images: int = 200, num_classes: int = 4) -> Outcomes:
        generator = torch.Generator().manual_seed(0)
        label = torch.randint(0, num_classes - 1, (num_images,), generator=generator)
        logits = torch.randn(num_images, num_classes, generator=generator)
        logits[torch.arange(num_images), label] += 1.5
        paths = [f"val/{number}.png" for number in range(num_images)]
        return Outcomes.of(logits.softmax(-1), label=label, index=torch.arange(num_images), paths=paths)

    return make


@pytest.fixture
def predictions(tmp_path: Path, outcomes: Callable[..., Outcomes]) -> Predictions:
    write_predictions(tmp_path / "predictions.csv", outcomes(), NAMES)
    return read_predictions(tmp_path / "predictions.csv")


@pytest.fixture
def image() -> Callable[[int], Tensor]:
    """An 8-bit image for each position."""
    return lambda index: torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(index)).byte()
