import dataclasses

import pytest

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings, check_choice, check_ratio


def test_defaults_are_the_papers_element_mask_with_decreasing_ratio() -> None:
    settings = DropKeySettings()
    assert (settings.ratio, settings.schedule, settings.final_ratio, settings.structure) == (0.3, "decreasing", 0.0, "element")
    assert (settings.match_mean, settings.include, settings.exclude) == (False, [], [])


def test_settings_do_not_share_their_lists() -> None:
    assert DropKeySettings().include is not DropKeySettings().include


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="ratio"):
        DropKeySettings().ratio = 0.5  # type: ignore[misc]  # what is tested


@pytest.mark.parametrize("ratio", [0.0, 0, 1e-9, 0.5, 0.999999])
def test_ratio_within_0_and_1_is_accepted(ratio: float) -> None:
    assert DropKeySettings(ratio=ratio).ratio == ratio


@pytest.mark.parametrize(("ratio", "shown"), [(1.0, "1.0"), (-0.1, "-0.1"), (1.5, "1.5"), (float("nan"), "nan"), (30, "30")])
def test_ratio_outside_is_refused_with_its_value(ratio: float, shown: str) -> None:
    with pytest.raises(InputError, match=rf"^ratio {shown} is not a drop ratio: give a share"):
        DropKeySettings(ratio=ratio)
    with pytest.raises(InputError, match=rf"^final_ratio {shown} "):
        DropKeySettings(final_ratio=ratio)
    with pytest.raises(InputError, match=rf"^schedule\[1\] {shown} "):
        DropKeySettings(schedule=[0.1, ratio])


def test_unknown_schedule_is_refused_with_the_nearest_word() -> None:
    with pytest.raises(InputError, match=r"schedule 'decresing' is unknown: .*; did you mean 'decreasing'"):
        DropKeySettings(schedule="decresing")  # type: ignore[arg-type]  # what is tested


def test_unknown_structure_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(
        InputError, match="structure 'blok' is unknown: give one of element, key, block, cross; did you mean 'block'"
    ):
        DropKeySettings(structure="blok")  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("window_size", [0, -3])
def test_window_without_a_side_is_refused(window_size: int) -> None:
    with pytest.raises(InputError, match=f"window_size {window_size} is no side of a window"):
        DropKeySettings(structure="block", window_size=window_size)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_one_word_instead_of_a_list_is_refused(option: str) -> None:
    with pytest.raises(InputError, match=rf"{option} 'MyAttention' is one word: give a list of patterns, \['MyAttention'\]"):
        DropKeySettings(**{option: "MyAttention"})  # type: ignore[arg-type]  # what is tested


def test_check_ratio_names_what_it_checked() -> None:
    with pytest.raises(InputError, match=r"ratios\[3\] 2.0"):
        check_ratio("ratios[3]", 2.0)


def test_check_choice_without_a_near_word_only_lists() -> None:
    with pytest.raises(InputError, match=r"kind 'zzz' is unknown: give one of a, b$"):
        check_choice("kind", "zzz", ("a", "b"))
