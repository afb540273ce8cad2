"""What every test starts from: one thread, one seed."""

import lightning  # noqa: F401 - before scikit-learn: after it, typing's cache makes the trainer's limit_…_batches=1 a 1.0, all
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
