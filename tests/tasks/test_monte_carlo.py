import weakref
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.seeds import derived_seed
from dropkey_cli.tasks.monte_carlo import Moments, MonteCarlo

IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NUMBERS = torch.tensor([7, 3, 0, 100, 8])


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, DropKeyPlan]:
    """A network in float64 that also has every dropout of timm's, which evaluation leaves off."""
    torch.manual_seed(2)
    options: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_classes": 5}
    rates: dict[str, Any] = {"drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5}
    model = timm.create_model("vit_tiny_patch16_224", **options, **rates).double().eval()
    return model, apply_dropkey(model, DropKeySettings(ratio=0.5), example_inputs=(IMAGES,))


def averaged(model: nn.Module, monte_carlo: MonteCarlo, places: list[int]) -> dict[str, Tensor]:
    with torch.inference_mode():
        return monte_carlo.average(lambda: {"probability": model(IMAGES[places]).softmax(-1)}, NUMBERS[places])


def test_mean_and_std_are_those_of_a_hand_loop(network: tuple[nn.Module, DropKeyPlan]) -> None:
    model, plan = network
    outputs = averaged(model, MonteCarlo(plan, 6, seed=9), list(range(5)))
    samples = []
    for sample in range(6):
        torch.manual_seed(derived_seed(9, sample))
        with torch.no_grad(), plan.sampling(NUMBERS):
            samples.append(model(IMAGES).softmax(-1))
    hand = torch.stack(samples)  # (N, B, K)
    torch.testing.assert_close(outputs["probability"], hand.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(outputs["std"], hand.std(0), rtol=1e-9, atol=0)
    assert (hand[:, None] - hand[None]).abs().flatten(2).amax(2).fill_diagonal_(1).min() > 1e-4  # no two samples are alike


def test_an_image_has_its_mean_in_every_batch(network: tuple[nn.Module, DropKeyPlan]) -> None:
    model, plan = network
    monte_carlo = MonteCarlo(plan, 3, seed=0)
    whole = averaged(model, monte_carlo, [0, 1, 2, 3, 4])
    for places in ([3], [4, 1]):
        part = averaged(model, monte_carlo, places)
        for name in ("probability", "std"):
            torch.testing.assert_close(part[name], whole[name][places], rtol=1e-9, atol=0)
    other = averaged(model, MonteCarlo(plan, 3, seed=1), [3])["probability"]
    assert (other - whole["probability"][3]).abs().max() > 1e-5


def test_only_dropkey_is_switched_on_and_only_there(network: tuple[nn.Module, DropKeyPlan]) -> None:
    model, plan = network
    with torch.no_grad():
        before = model(IMAGES)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    averaged(model, MonteCarlo(plan, 2, seed=0), [0])
    assert torch.equal(torch.rand(3), expected)  # what else draws random numbers goes on where it was
    with torch.no_grad():
        assert torch.equal(model(IMAGES), before)
    assert not any(module.training for module in model.modules())


def test_memory_does_not_grow_with_the_samples(network: tuple[nn.Module, DropKeyPlan]) -> None:
    model, plan = network
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def outputs() -> dict[str, Tensor]:
        nonlocal most
        most = max(most, sum(each() is not None for each in alive))
        probability = model(IMAGES).softmax(-1)
        alive.append(weakref.ref(probability))
        return {"probability": probability}

    with torch.no_grad():
        MonteCarlo(plan, 20, seed=0).average(outputs, NUMBERS)
    assert len(alive) == 20
    assert most <= 2


def test_moments_are_torchs_also_far_from_zero() -> None:
    values = torch.randn(50, 4, dtype=torch.float64) + 1e6
    moments = Moments()
    for number, value in enumerate(values, 1):
        moments.add(value)
        torch.testing.assert_close(moments.mean, values[:number].mean(0), rtol=1e-14, atol=0)
        if number == 1:
            assert moments.std.isnan().all()  # as torch.std says of one value, with a warning
        else:
            torch.testing.assert_close(moments.std, values[:number].std(0), rtol=1e-6, atol=0)


def test_a_network_that_drops_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--mc_samples 4: the network was trained without DropKey"):
        MonteCarlo(None, 4, seed=0)
    model = timm.create_model("test_vit")
    plan = apply_dropkey(model, DropKeySettings(ratio=0.0))
    with pytest.raises(InputError, match="has drop ratio 0 in every layer, so all samples would be alike: leave it out"):
        MonteCarlo(plan, 4, seed=0)
