import math
import weakref
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from dropkey_cli.callbacks.nonfinite_layers import find_nonfinite, is_finite, largest_magnitude, largest_norm
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vit() -> tuple[Any, DropKeyPlan]:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", depth=3, img_size=32).train()
    return model, apply_dropkey(model, DropKeySettings(ratio=0.4), example_inputs=(IMAGES,))


class Times(nn.Module):
    """Multiplies a value."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, value: Tensor) -> Tensor:
        return value * self.factor


def layer(weight: float) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, weight)
    return linear


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_parameter_comes_first(value: float) -> None:
    model, _ = vit()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[3, 2] = value
        model.blocks[2].attn.qkv.bias[0] = value
    for images in (IMAGES, IMAGES * math.nan, None):
        assert find_nonfinite(model, images) == "the parameter blocks.1.mlp.fc1.weight is not finite"


def test_then_the_images() -> None:
    images = IMAGES.clone()
    images[1, 2, 3, 4] = math.nan
    assert find_nonfinite(vit()[0], images) == "the images themselves are not finite"


def test_then_the_first_module_in_order_of_execution() -> None:
    model, _ = vit()
    model.blocks[2].ls1 = Times(math.inf)
    model.blocks[1].mlp.act = Times(math.inf)
    assert find_nonfinite(model, IMAGES) == "the first value that is not finite comes out of blocks.1.mlp.act"


def test_what_no_module_computes_is_seen_where_it_is_taken() -> None:
    model, _ = vit()
    model.blocks[1].attn.scale = math.nan  # only the functional attention uses it
    model.blocks[1].attn.fused_attn = False
    assert find_nonfinite(model, IMAGES) == "the first value that is not finite goes into blocks.1.attn.attn_drop"


def test_a_network_without_modules_inside() -> None:
    assert find_nonfinite(Times(math.nan), IMAGES) == "the first value that is not finite comes out of the network"
    assert find_nonfinite(Times(2.0), IMAGES) == (
        "every output is finite on the last batch, and the largest are those of no layer"
    )


def test_else_the_largest_outputs() -> None:
    # 1, 30, 300, 3000, 3
    network = nn.Sequential(nn.Identity(), layer(30), Times(10), layer(10), nn.Dropout(0), Times(0.001))
    assert find_nonfinite(network, torch.tensor([[-1.0], [0.5]])) == (
        "every output is finite on the last batch, and the largest are those of 3 (3e+03), 2 (300), 1 (30)"
    )


def test_without_images_only_parameters_are_looked_at() -> None:
    assert find_nonfinite(Times(math.nan), None) == "every parameter is finite"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_network_and_the_random_numbers_stay_as_they_were(training: bool, fails: bool) -> None:
    inner, plan = vit()
    if fails:
        inner.head = nn.Linear(1, 1)
    model = nn.Sequential(nn.BatchNorm2d(3), inner).train(training)
    inner.forward_features(IMAGES)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    counts = [layer.counts.clone() for layer in plan.states]
    assert training is bool(counts[0][0] > 0)
    generator = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            find_nonfinite(model, IMAGES)
    else:
        assert "every output is finite" in find_nonfinite(model, IMAGES)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(layer.counts, before) for layer, before in zip(plan.states, counts, strict=True))
    assert all(module.training is training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_keys_are_dropped_as_in_training() -> None:
    model, plan = vit()
    counted: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: counted.append(int(plan.states[0].counts[0])))
    find_nonfinite(model, IMAGES)
    assert counted[0] > 0


def test_no_output_is_kept() -> None:
    class Weak(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            alive.append(sum(reference() is not None for reference in references))
            result = value + 1
            references.append(weakref.ref(result))
            return result

    references: list[Any] = []
    alive: list[int] = []
    find_nonfinite(nn.Sequential(*(Weak() for _ in range(5))), torch.zeros(4))
    assert alive == [0, 1, 1, 1, 1]  # the module's own input


def test_a_compiled_network_is_looked_at_layer_by_layer() -> None:
    network = nn.Sequential(layer(1), Times(math.inf))
    compiler = CompileCounter()
    network.compile(backend=compiler)
    assert find_nonfinite(network, torch.ones(2, 1)) == "the first value that is not finite comes out of 1"
    assert compiler.frame_count == 0


# Magnitudes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], 0.0),
        ([[]], 0.0),
        ([[1.0, -3.0], [2.0]], 3.0),
        ([[1.0], [-math.inf]], math.inf),
        ([[math.nan], [math.inf, 1]], math.nan),
    ],
)
def test_the_largest_magnitude(values: list[list[float]], expected: float) -> None:
    tensors = [torch.tensor(value) for value in values]
    assert float(largest_magnitude(tensors)) == pytest.approx(expected, nan_ok=True)
    assert is_finite(tensors) is math.isfinite(expected)


def test_dtypes_may_be_mixed_and_nothing_overflows() -> None:
    tensors = [torch.full((1000,), 6e4).half(), torch.ones(2).bfloat16(), torch.full((1000,), 3e38)]
    assert float(largest_magnitude(tensors)) == float(torch.tensor(3e38))
    assert is_finite(tensors)


def test_the_largest_norm() -> None:
    assert float(largest_norm([torch.tensor([3.0, 4.0]), torch.tensor([-2.0]), torch.tensor([])])) == 5
    assert float(largest_norm([])) == 0
    assert math.isnan(float(largest_norm([torch.tensor([math.inf, math.nan]), torch.ones(3)])))
    assert float(largest_norm([torch.full((1000,), 6e4).half()])) == pytest.approx(6e4 * math.sqrt(1000), rel=1e-3)
    assert math.isinf(float(largest_norm([torch.tensor([1e20, 1e20])])))
