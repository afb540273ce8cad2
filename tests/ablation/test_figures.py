import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.figures import Values, draw_figures, ratio_figure, remedy_figure, structure_figure
from dropkey_cli.ablation.results import Row
from dropkey_cli.ablation.statistics import by_seed, compare, mean_of, present
from dropkey_cli.report.pictures import drawing

NONE, ELEMENT = Cell(), Cell("dropkey", 0.3, "decreasing", structure="element")
FINISHED = Cell("dropkey", 0.3, "decreasing", structure="element", remedy="finish")


@pytest.fixture
def found(table: list[Row]) -> Values:
    return {cell: present(values) for cell, values in by_seed(table, "test/acc1").items()}


def series(figure: Figure | None) -> dict[str, ErrorbarContainer]:
    assert figure is not None
    drawn = [each for each in figure.axes[0].containers if isinstance(each, ErrorbarContainer)]
    return {str(each.get_label()): each for each in drawn}


def points(container: ErrorbarContainer) -> list[tuple[float, float]]:
    line = container.lines[0]
    assert line is not None
    return [(x, y) for x, y in np.asarray(line.get_xydata()).tolist()]


def ends(container: ErrorbarContainer) -> list[list[tuple[float, float]]]:
    bars = container.lines[2][0]
    return [[(float(x), float(y)) for x, y in bar] for bar in bars.get_segments()]


def axes_of(figure: Figure | None) -> Axes:
    assert figure is not None
    return figure.axes[0]


def test_all_that_is_there_is_drawn_and_can_be_read(tmp_path: Path, table: list[Row]) -> None:
    files = draw_figures(tmp_path, table, "test/acc1")
    names = ["ratio.png", "ratio.svg", "structure.png", "structure.svg", "remedy.png", "remedy.svg"]
    assert files == [tmp_path / name for name in names]
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.width == 900
        else:
            seeds = "7 seeds" if file.stem == "remedy" else "8 seeds"  # a finished training failed
            assert seeds in "".join(xml.etree.ElementTree.parse(file).getroot().itertext())


def test_figures_are_the_same_at_every_drawing(tmp_path: Path, table: list[Row]) -> None:
    first = [file.read_bytes() for file in draw_figures(tmp_path, table, "test/acc1")]
    assert [file.read_bytes() for file in draw_figures(tmp_path, table, "test/acc1")] == first


def test_nothing_is_drawn_of_what_was_not_compared(tmp_path: Path, table: list[Row]) -> None:
    assert draw_figures(tmp_path, [row for row in table if row.cell in (NONE, ELEMENT)], "test/acc1") == []
    assert draw_figures(tmp_path, [Row(NONE, 1, error="killed"), Row(FINISHED, 1, error="killed")], "test/acc1") == []
    assert draw_figures(tmp_path, table, "test/acc5") == []
    assert not any(tmp_path.iterdir())


def test_a_point_is_the_mean_and_its_bar_the_standard_error(found: Values) -> None:
    with drawing():
        figure = ratio_figure(found, "test/acc1")
    lines = series(figure)
    assert list(lines) == ["attention dropout", "DropKey decreasing", "DropKey increasing"]
    mean = mean_of(found[ELEMENT].values())
    assert mean.mean is not None and mean.error is not None
    last = points(lines["DropKey decreasing"])[-1]
    assert last == pytest.approx((0.3, 100 * mean.mean), abs=0.01)
    low, high = ends(lines["DropKey decreasing"])[-1]
    assert (low[1], high[1]) == pytest.approx((100 * (mean.mean - mean.error), 100 * (mean.mean + mean.error)))
    assert "mean ± standard error, 8 seeds" in axes_of(figure).get_xlabel()
    assert axes_of(figure).get_ylabel() == "test/acc1, %"


def test_no_dropping_is_a_line_from_side_to_side(found: Values) -> None:
    with drawing():
        figures = [ratio_figure(values, "test/acc1") for values in (found, {cell: found[cell] for cell in found if cell.ratio})]
    heights = [
        [np.asarray(line.get_ydata())[0] for line in axes_of(figure).lines if line.get_label() == "none"] for figure in figures
    ]
    assert heights == [[pytest.approx(100 * (mean_of(found[NONE].values()).mean or 0))], []]


def test_structures_are_shown_with_the_intervals_of_the_pairs(found: Values) -> None:
    with drawing():
        figure = structure_figure(found, "test/acc1")
    (dots,) = series(figure).values()
    comparison = compare(found[ELEMENT], found[NONE])
    assert comparison.interval is not None
    assert dots.get_label() == "DropKey decreasing 0.3"
    assert points(dots)[0] == pytest.approx((100 * (comparison.pairs.mean or 0), 0))
    assert [x for x, _ in ends(dots)[0]] == pytest.approx([100 * end for end in comparison.interval])
    assert [text.get_text() for text in axes_of(figure).get_yticklabels()] == ["element", "block 2×2"]
    assert axes_of(figure).get_xlabel() == "difference to none: test/acc1, points\n(paired, 95 % interval, 8 seeds)"


def test_without_no_dropping_structures_are_compared_with_element(found: Values) -> None:
    with drawing():
        figure = structure_figure({cell: found[cell] for cell in found if cell != NONE}, "test/acc1")
    (dots,) = series(figure).values()
    assert points(dots)[0] == (0, 0)
    assert axes_of(figure).get_xlabel().startswith("difference to element")


def test_a_remedy_is_compared_with_the_same_training_without_it(found: Values) -> None:
    with drawing():
        figure = remedy_figure(found, "test/acc1")
        without = remedy_figure({cell: found[cell] for cell in found if cell != ELEMENT}, "test/acc1")
    (dots,) = series(figure).values()
    assert points(dots)[0] == pytest.approx((100 * (compare(found[FINISHED], found[ELEMENT]).pairs.mean or 0), 0))
    assert len(points(dots)) == 1
    assert [text.get_text() for text in axes_of(figure).get_yticklabels()] == ["DropKey decreasing 0.3"]
    assert without is None


def test_a_loss_is_shown_as_it_is(table: list[Row]) -> None:
    losses = {cell: present(values) for cell, values in by_seed(table, "test/loss").items()}
    with drawing():
        figure = ratio_figure(losses, "test/loss")
    assert axes_of(figure).get_ylabel() == "test/loss"
    mean = mean_of(losses[Cell("dropkey", 0.3, "increasing", structure="element")].values()).mean
    assert points(series(figure)["DropKey increasing"])[0][1] == pytest.approx(mean)


def test_one_seed_has_no_error_bars(table: list[Row]) -> None:
    single = {cell: present(values) for cell, values in by_seed([row for row in table if row.seed == 0], "test/acc1").items()}
    with drawing():
        figures = [draw(single, "test/acc1") for draw in (ratio_figure, structure_figure, remedy_figure)]
    assert all(low == high for figure in figures for each in series(figure).values() for low, high in ends(each))
