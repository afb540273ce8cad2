import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dropkey_cli.benchmark.attention import reference_attention
from dropkey_cli.benchmark.paper import paper_attention, paper_mask, paper_softmax, paste_listing
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey


def test_the_mask_drops_at_the_ratio_and_adds_nothing_elsewhere() -> None:
    mask = paper_mask(torch.randn(4, 3, 197, 197), 0.1)
    assert set(mask.flatten().tolist()) == {0, torch.tensor(-1e12).item()}
    assert (mask != 0).double().mean() == pytest.approx(0.1, abs=0.002)  # 465,708 draws: a standard deviation of 0.0004


def test_the_listing_is_attention_over_the_keys_that_its_mask_leaves() -> None:
    q, k, v = torch.randn(3, 2, 3, 17, 8)
    torch.manual_seed(5)
    attended = paper_attention(q, k, v, 0.3)
    torch.manual_seed(5)
    dropped = paper_mask(torch.empty(2, 3, 17, 17), 0.3) != 0
    expected = reference_attention(q.double(), k.double(), v.double(), dropped)
    assert dropped.any() and not dropped.all(-1).any()
    assert (attended - expected).abs().max() < 1e-6


def test_weights_of_dropped_keys_are_zero() -> None:
    torch.manual_seed(5)
    weights = paper_softmax(torch.randn(2, 3, 17, 17), 0.3)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 17))
    assert (weights == 0).double().mean() == pytest.approx(0.3, abs=0.06)  # 1734 draws: a standard deviation of 0.011


def test_an_added_mask_and_a_scale_are_kept() -> None:
    q, k, v, added = torch.randn(4, 2, 3, 8, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, added, scale=0.7)
    assert torch.allclose(paper_attention(q, k, v, 0.0, added, scale=0.7), expected, atol=1e-6)
    with pytest.raises(InputError, match="no line for a causal or boolean mask"):
        paper_attention(q, k, v, 0.1, is_causal=True)


def with_listing(model: nn.Module, ratio: float) -> nn.Module:
    """A copy of the model into which the listing was pasted."""
    pasted, patched = copy.deepcopy(model), copy.deepcopy(model)
    paste_listing(pasted, apply_dropkey(patched, DropKeySettings(ratio, schedule="constant")))
    return pasted


@pytest.mark.parametrize(("name", "size"), [("test_vit", (160, 160)), ("levit_128s", (224, 224))])  # by SDPA, by softmax
def test_a_pasted_model_computes_the_same_at_ratio_0_and_something_else_at_0_1(name: str, size: tuple[int, int]) -> None:
    model = timm.create_model(name).eval()
    same, other = with_listing(model, 0.0), with_listing(model, 0.1)
    images = torch.randn(2, 3, *size)
    expected = model(images)
    assert (same(images) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (other(images) - expected).abs().max() > 1e-2 * expected.abs().max()


class Tokens(nn.Module):
    """Attention inside torch's own function."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401 - output and weights
        return self.attend(x, x, x)


def test_torchs_multi_head_attention_takes_no_listing() -> None:
    model = Tokens()
    plan = apply_dropkey(Tokens(), DropKeySettings(0.1), example_inputs=(torch.randn(2, 5, 8),))
    with pytest.raises(InputError, match=r"cannot be pasted into attend, an nn\.MultiheadAttention"):
        paste_listing(model, plan)
