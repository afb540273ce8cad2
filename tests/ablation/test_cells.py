import pytest

from dropkey_cli.ablation.cells import Cell

NAMES = {
    "none": Cell(),
    "attention_dropout_0.1": Cell("attention_dropout", 0.1),
    "dropkey_decreasing_0.3_element_finish": Cell("dropkey", 0.3, "decreasing", structure="element", remedy="finish"),
    "dropkey_increasing_mean_0.05_block3": Cell("dropkey", 0.05, "increasing", True, "block", 3),
}


@pytest.mark.parametrize(("name", "cell"), NAMES.items())
def test_a_cells_name_says_what_it_was_told(name: str, cell: Cell) -> None:
    assert cell.name == name
