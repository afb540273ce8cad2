import pytest

from dropkey_cli.errors import InputError
from dropkey_cli.method.schedule import layer_ratios
from dropkey_cli.method.settings import DropKeySettings, Schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("decreasing", [0.4, 0.3, 0.2, 0.1, 0.0]),
        ("increasing", [0.0, 0.1, 0.2, 0.3, 0.4]),
        ("constant", [0.4, 0.4, 0.4, 0.4, 0.4]),
        ([0.5, 0.0, 0.25, 0.9, 0.1], [0.5, 0.0, 0.25, 0.9, 0.1]),
    ],
)
def test_ratios_of_five_layers(schedule: Schedule | list[float], expected: list[float]) -> None:
    assert layer_ratios(DropKeySettings(ratio=0.4, schedule=schedule), 5) == pytest.approx(expected)


def test_ends_are_exact() -> None:
    ratios = layer_ratios(DropKeySettings(ratio=0.3, final_ratio=0.1), 12)
    assert (ratios[0], ratios[-1]) == (0.3, 0.1)
    assert layer_ratios(DropKeySettings(ratio=0.3, final_ratio=0.1, schedule="increasing"), 12) == ratios[::-1]


def test_final_ratio_is_the_far_end() -> None:
    assert layer_ratios(DropKeySettings(ratio=0.3, final_ratio=0.1), 3) == pytest.approx([0.3, 0.2, 0.1])


@pytest.mark.parametrize("schedule", ["decreasing", "increasing", "constant"])
def test_one_layer_takes_the_ratio(schedule: Schedule) -> None:
    assert layer_ratios(DropKeySettings(ratio=0.3, schedule=schedule), 1) == [0.3]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("decreasing", [0.6, 0.3, 0.0]),
        ("increasing", [0.0, 0.3, 0.6]),
        ("constant", [0.3, 0.3, 0.3]),
        ([0.1, 0.2, 0.3], [0.15, 0.3, 0.45]),
    ],
)
def test_match_mean_rescales_to_the_mean_ratio(schedule: Schedule | list[float], expected: list[float]) -> None:
    ratios = layer_ratios(DropKeySettings(ratio=0.3, schedule=schedule, match_mean=True), 3)
    assert ratios == pytest.approx(expected)
    assert sum(ratios) / 3 == pytest.approx(0.3)


def test_match_mean_that_leaves_the_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"largest of the 3 layers' ratios, 1\.2"):
        layer_ratios(DropKeySettings(ratio=0.6, match_mean=True), 3)


def test_match_mean_of_zeros_is_refused() -> None:
    with pytest.raises(InputError, match=r"schedule of zeros to mean 0\.3"):
        layer_ratios(DropKeySettings(ratio=0.3, schedule=[0.0, 0.0], match_mean=True), 2)


def test_match_mean_of_ratio_0_is_zeros() -> None:
    assert layer_ratios(DropKeySettings(ratio=0.0, match_mean=True), 3) == [0, 0, 0]


def test_list_of_another_length_is_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"lists 2 ratios, the model has 12 layers.*give 12 ratios"):
        layer_ratios(DropKeySettings(schedule=[0.1, 0.2]), 12)


def test_tuple_counts_as_a_list() -> None:
    assert layer_ratios(DropKeySettings(schedule=(0.1, 0.2)), 2) == [0.1, 0.2]  # type: ignore[arg-type]  # what is tested


def test_the_settings_list_is_not_handed_out() -> None:
    settings = DropKeySettings(schedule=[0.1, 0.2])
    layer_ratios(settings, 2)[0] = 0.9
    assert settings.schedule == [0.1, 0.2]
