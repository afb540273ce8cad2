import copy
import pickle
import struct
from collections.abc import Callable

import pytest
import torch

from dropkey_cli.method.mask import KeyLayout, ratio_share
from dropkey_cli.method.variance import dropped_variance
from dropkey_cli.patching.counting import UNIT
from dropkey_cli.patching.known import Rule
from dropkey_cli.patching.layer import LayerDropKey


def layer(ratio: float = 0.5) -> LayerDropKey:
    return LayerDropKey(ratio, Rule("key"))


def test_tally_expects_what_each_draw_was_drawn_with() -> None:
    state = layer(0.5)
    state.counts += torch.tensor([40, 100])
    state.set_ratio(0.25)
    state.set_ratio(0.125)
    state.counts += torch.tensor([10, 80])
    assert state.tally().tolist() == [50, 180, 60 * UNIT, (25 + 8.75) * UNIT]
    assert state.tally().tolist() == [50, 180, 60 * UNIT, (25 + 8.75) * UNIT]  # asking changes nothing
    state.clear()
    state.counts += torch.tensor([3, 8])
    assert state.tally().tolist() == [3, 8, UNIT, 0.875 * UNIT]


def test_variance_is_that_of_the_structure() -> None:
    layout = KeyLayout(4, 5, 1)
    state = LayerDropKey(0.25, Rule("key"), structure="cross", layout=layout)
    state.counts += torch.tensor([0, 21 * 1000])
    variance = dropped_variance(21_000, 0.25, "cross", layout)
    assert int(state.tally()[3]) == pytest.approx(variance * UNIT, rel=1e-4)
    assert variance > 2 * dropped_variance(21_000, 0.25)


@pytest.mark.parametrize("ratio", [0.3, 1e-5, 0.999999999, (2 * 77 + 1) / 2**17, (2 * 77 + 1) / 2**17 - 1e-12])
def test_share_is_the_one_that_masks_are_drawn_with(ratio: float) -> None:
    state = layer(ratio)
    assert state.share == int(ratio_share(state.ratio))
    state.set_ratio(0.1)
    state.set_ratio(ratio)
    assert state.share == int(ratio_share(state.ratio))
    assert struct.unpack("f", struct.pack("f", ratio))[0] == float(state.ratio)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_copy_counts_on_its_own(copier: Callable[[LayerDropKey], LayerDropKey]) -> None:
    state = layer(0.5)
    state.counts += torch.tensor([40, 100])
    state.set_ratio(0.25)
    twin = copier(state)
    state.clear()
    twin.counts += torch.tensor([2, 8])
    assert twin.tally().tolist() == [42, 108, 52 * UNIT, 26.5 * UNIT]
    assert state.tally().tolist() == [0, 0, 0, 0]


def test_counts_survive_the_meta_device() -> None:
    state = layer(0.5)
    state.counts += torch.tensor([40, 100])
    state.set_ratio(0.25)
    state.to(torch.device("meta"))
    assert state.tally().tolist() == [40, 100, 50 * UNIT, 25 * UNIT]


def test_restored_tally_is_counted_on_from_in_place() -> None:
    state = layer(0.25)
    counts, settled = state.counts, state.settled
    state.restore([40, 100, 50 * UNIT, 25 * UNIT])
    state.counts += torch.tensor([2, 8])
    assert state.tally().tolist() == [42, 108, 52 * UNIT, 26.5 * UNIT]
    assert state.counts is counts
    assert state.settled is settled


def test_sums_stay_exact_beyond_what_floats_can_hold() -> None:
    state = layer(1 / 3)
    state.counts[1] = 2**42 + 1
    assert int(state.tally()[2]) == round(2**16 / 3) * (2**42 + 1)
