import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dropkey_cli.patching.counting import add_unless_recomputed, recomputing


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_only_the_forward_in_the_backward_pass_recomputes(use_reentrant: bool) -> None:
    answers = []

    def forward(x: Tensor) -> Tensor:
        answers.append(recomputing())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    torch.autograd.backward(checkpoint(forward, x, use_reentrant=use_reentrant).sum())
    assert answers == [False, True]


def test_draws_are_added_in_the_forward_only() -> None:
    counts = torch.tensor([1, 2])

    def forward(x: Tensor) -> Tensor:
        add_unless_recomputed(counts, torch.tensor([10, 20]))
        return x.sin()

    torch.autograd.backward(checkpoint(forward, torch.ones(2, requires_grad=True), use_reentrant=False).sum())
    assert counts.tolist() == [11, 22]
