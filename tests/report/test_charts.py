import torch
from matplotlib.image import AxesImage

from dropkey_cli.report.charts import NUMBERED, calibration_figure, confusion_figure, short
from dropkey_cli.report.pictures import drawing
from dropkey_cli.report.scores import BINS, Calibration


def test_a_small_matrix_says_its_numbers_and_names() -> None:
    with drawing():
        axes = confusion_figure(torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 3]]), ["a", "$b", "c" * 30]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["8", "2", "1", "3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "$b", "c" * 15 + "…"]
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())
    (shown,) = [child for child in axes.get_children() if isinstance(child, AxesImage)]
    expected = torch.tensor([[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]])
    assert torch.allclose(torch.as_tensor(shown.get_array()).float(), expected)


def test_a_large_matrix_is_colours_alone() -> None:
    num_classes = NUMBERED + 1
    axes = confusion_figure(torch.eye(num_classes).long(), ["name"] * num_classes).axes[0]
    assert list(axes.texts) == []
    assert "name" not in [label.get_text() for label in axes.get_yticklabels()]


def test_bars_are_the_accuracy_of_bins_that_hold_images() -> None:
    accuracy, confidence, count = [0.0] * BINS, [0.0] * BINS, [0] * BINS
    accuracy[13], confidence[13], count[13] = 0.5, 0.9, 4
    upper, lower = calibration_figure(Calibration(accuracy, confidence, count, 0.4)).axes
    assert [bar.get_height() for bar in upper.patches] == [0.5]  # type: ignore[attr-defined]  # rectangles
    assert [bar.get_height() for bar in lower.patches] == count  # type: ignore[attr-defined]


def test_long_names_are_cut_and_what_is_no_text_is_replaced() -> None:
    assert [short("abcd", 4), short("abcde", 4), short("\udcff", 4)] == ["abcd", "abc…", "?"]
