import random
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment as timm_augment
from hypothesis import given, settings
from hypothesis import strategies as st

from dropkey_cli.data.augmentation import Augmentation
from dropkey_cli.errors import InputError

GOOD = [
    "rand-m9-mstd0.5-inc1",
    "rand",
    "rand-m15-n3",
    "rand-m9-n3-p0.3-mmax20-mstd101",
    "rand-n4-tweights",
    "rand-t3a",
    "rand-t3aw",
    "augmix-b1",
    "augmix-m4-w4-d2-a0.5-mstd1",
    "original",
    "originalr-mstd0.5",
    "v0",
    "v0r",
    "3a",
    "3a-mstd0.5",
]


def parsed_by_timm(text: str) -> Any:  # noqa: ANN401
    kinds = {"rand": timm_augment.rand_augment_transform, "augmix": timm_augment.augment_and_mix_transform}
    return kinds.get(text.split("-")[0], timm_augment.auto_augment_transform)(text, {"translate_const": 10})


@pytest.mark.parametrize("text", GOOD)
def test_timm_uses_every_part_of_a_good_text(text: str) -> None:
    assert Augmentation(auto_augment=text).auto_augment == text
    for section in text.split("-")[1:]:
        without = parsed_by_timm(text.replace(f"-{section}", "", 1))
        assert section == "b1" or repr(without) != repr(parsed_by_timm(text))  # whose text does not show b


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rand-m9-foo", "'rand-m9-foo', but 'foo' in it means nothing; expected rand and any of m, n, p, mstd"),
        ("rand-m9-inc", "'inc' in it means nothing"),  # timm takes it for no inc at all
        ("rand-tweight", "'tweight' in it means nothing"),  # and this for no weights
        ("rand-m9.5", "'m9.5' in it means nothing"),
        ("rand-m9-m5", "'rand-m9-m5', but it gives a value twice"),
        ("rand-m9-n0", "'n0' in it means nothing"),
        ("rand-m-9", "'m' in it means nothing"),
        ("rand-", "'' in it means nothing"),
        ("randm9", "auto_augment is 'randm9'; expected e.g. rand-m9-mstd0.5-inc1 .RandAugment."),
        ("rondom", "auto_augment is 'rondom'; expected e.g."),
        ("", "auto_augment is ''; expected e.g."),
        ("v1", "auto_augment is 'v1'; expected e.g."),
        ("original-m9", "'m9' in it means nothing; expected original and any of mstd"),
        ("augmix-n3", "'n3' in it means nothing"),
        ("3a-n2\n", r"'n2\\n' in it means nothing"),
    ],
)
def test_a_text_that_timm_would_misread_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        Augmentation(auto_augment=text)
    assert "\n" not in str(refused.value)


@settings(deadline=None)
@given(st.text(alphabet="randugmixogv03-twehs19.5", max_size=20) | st.sampled_from(GOOD).map(lambda text: text + "-m5"))
def test_whatever_is_accepted_timm_takes(text: str) -> None:
    try:
        Augmentation(auto_augment=text)
    except InputError:
        return
    random.seed(0)
    np.random.seed(0)
    parsed_by_timm(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale is \(0.5, 0.2\); expected two shares"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale is \(0.0, 1.0\); expected two shares"),
        ({"crop_ratio": (2.0, 1.0)}, r"crop_ratio is \(2.0, 1.0\); expected two ratios"),
        ({"crop_ratio": (0.2, 1.0)}, r"crop_ratio is \(0.2, 1.0\); expected two ratios .* in \[0.25, 4\]"),
        ({"crop_padding": -1}, "crop_padding is -1; expected 0 to 10000"),
        ({"hflip": 1.5}, "hflip is 1.5; expected a probability"),
        ({"vflip": -0.1}, "vflip is -0.1; expected a probability"),
        ({"color_jitter_prob": 2}, "color_jitter_prob is 2; expected a probability"),
        ({"grayscale_prob": 2}, "grayscale_prob is 2; expected a probability"),
        ({"gaussian_blur_prob": float("nan")}, "gaussian_blur_prob is nan; expected a probability"),
        ({"color_jitter": -0.1}, "color_jitter is -0.1; expected a number of 0 or more"),
        ({"color_jitter": (0.1, 0.1)}, r"color_jitter is \(0.1, 0.1\); expected .* three or four"),
        ({"color_jitter": (0.1, 0.1, 0.1, 0.6)}, "hue, which is at most 0.5"),
        (
            {"color_jitter": 0.3, "auto_augment": "rand-m9"},
            "color_jitter is 0.3 beside auto_augment 'rand-m9', which changes the colours by itself",
        ),
    ],
)
def test_values_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation(**changes)


def test_color_jitter_is_off_one_number_or_one_each() -> None:
    assert Augmentation().jitter is None
    assert Augmentation(color_jitter=(0.0, 0.0, 0.0)).jitter is None
    assert Augmentation(color_jitter=0.3).jitter == (0.3,) * 3
    assert Augmentation(color_jitter=(0.1, 0.2, 0.3, 0.4), auto_augment="3a").jitter == (0.1, 0.2, 0.3, 0.4)
