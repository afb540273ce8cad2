import pytest
import torch
from torch import Tensor, nn

from dropkey_cli.errors import RunError
from dropkey_cli.export.comparing import check_difference, largest_difference

IMAGES = torch.arange(8.0 * 3 * 4).reshape(8, 3, 2, 2) / 1000


class Sums(nn.Module):
    """Two logits."""

    def forward(self, images: Tensor) -> Tensor:
        sums = images.flatten(1).sum(1)
        return torch.stack((sums, -sums), dim=1)


def test_the_largest_difference_of_any_logit() -> None:
    def other(images: Tensor) -> Tensor:
        logits: Tensor = Sums()(images)
        return logits + torch.tensor([0.0, 0.25]) * (len(images) == 5)  # in one of the batches only

    assert largest_difference(Sums(), Sums(), IMAGES) == 0
    assert largest_difference(other, Sums(), IMAGES) == pytest.approx(0.25)


@pytest.mark.parametrize("wrong", [lambda images: Sums()(images)[:1].expand(3, 2), lambda images: Sums()(images) / 0])
def test_other_shapes_and_numbers_that_are_none(wrong: nn.Module) -> None:
    assert largest_difference(wrong, Sums(), IMAGES) == float("inf")


def test_more_than_a_ten_thousandth_is_an_error() -> None:
    check_difference("onnx", 1.05e-4, Sums(), IMAGES)  # the largest logit is 1.07
    with pytest.raises(RunError, match=r"^the onnx export differs from the network by 0\.0002 \(allowed: 0\.00011, logits"):
        check_difference("onnx", 2e-4, Sums(), IMAGES)
    with pytest.raises(RunError, match="differs from the network by inf"):
        check_difference("torch", float("inf"), Sums(), IMAGES)
    with pytest.raises(RunError, match=r"by 0\.00011 \(allowed: 0\.0001,"):
        check_difference("torch", 1.1e-4, Sums(), IMAGES / 100)


def test_a_difference_that_is_no_number_is_an_error() -> None:
    with pytest.raises(RunError, match="differs from the network by nan"):
        check_difference("torch", float("nan"), Sums(), IMAGES)
