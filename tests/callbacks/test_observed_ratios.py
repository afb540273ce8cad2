import math

import pytest
import timm
import torch

from dropkey_cli.callbacks.observed_ratios import ObservedLayer, drop_ratios, observe
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey

UNIT = 2**16


@pytest.fixture
def plan() -> DropKeyPlan:
    model = timm.create_model("test_vit", depth=3, img_size=32)
    return apply_dropkey(model, DropKeySettings(ratio=0.5), example_inputs=(torch.zeros(2, 3, 32, 32),))


def test_ratios_are_dropped_draws_over_all_draws(plan: DropKeyPlan) -> None:
    layers = observe(plan, [[30, 100, 50 * UNIT, 25 * UNIT], [1, 8, 2 * UNIT, UNIT], [0, 0, 0, 0]])
    assert drop_ratios(layers) == {
        "drop_ratio/blocks.0.attn": 0.3,
        "drop_ratio/blocks.1.attn": 0.125,
        "drop_ratio/blocks.2.attn": 0.0,
        "drop_ratio/mean": pytest.approx(0.425 / 3),
        "drop_ratio_configured/blocks.0.attn": 0.5,
        "drop_ratio_configured/blocks.1.attn": 0.25,
        "drop_ratio_configured/blocks.2.attn": 0.0,
    }
    assert [layer.deviation for layer in layers] == [4.0, 1.0, 0.0]
    assert [layer.sigma for layer in layers] == [0.05, 0.125, 0.0]


def test_an_unchanged_ratio_is_given_as_it_was_configured(plan: DropKeyPlan) -> None:
    plan.set_ratios([0.3, 0.2, 0.1])  # none is a multiple of 2^-16
    tallies = [[1, 100, state.share * 100, 1] for state in plan.states]
    assert [layer.configured for layer in observe(plan, tallies)] == [0.3, 0.2, 0.1]
    tallies[1][2] += 1
    assert observe(plan, tallies)[1].configured == pytest.approx(0.2, abs=2**-16)
    assert observe(plan, tallies)[1].configured != 0.2


def test_without_draws_the_present_ratio_is_the_configured_one(plan: DropKeyPlan) -> None:
    plan.set_ratios([0.1, 0.2, 0.3])
    assert [layer.configured for layer in observe(plan, [[0] * 4] * 3)] == [0.1, 0.2, 0.3]
    plan.enabled = False
    assert [layer.configured for layer in observe(plan, [[0] * 4] * 3)] == [0.0] * 3
    assert observe(plan, [[1, 10, plan.states[0].share * 10, 1]] * 3)[0].configured == 0.1  # of the masks that were drawn


def test_a_count_that_cannot_vary_deviates_by_nothing_or_by_all() -> None:
    assert ObservedLayer("a", 0.0, 0, 10, 0.0, 0.0).deviation == 0
    assert ObservedLayer("a", 0.0, 1, 10, 0.0, 0.0).deviation == math.inf
