from pathlib import Path
from typing import Any

import pytest

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.grid import GRIDS, cells_of
from dropkey_cli.ablation.results import Row, read_rows, write_rows
from dropkey_cli.commands.tool_options import GRID_NAMES
from dropkey_cli.errors import InputError


def test_a_block_stands_for_all_combinations_after_the_baseline() -> None:
    cells = cells_of([{"what": "dropkey", "schedule": ["constant", "increasing"], "ratio": [0.1, 0.3]}], source="grid")
    assert cells == [
        Cell(),
        *(
            Cell("dropkey", ratio, schedule, structure="element")
            for schedule in ("constant", "increasing")
            for ratio in (0.1, 0.3)
        ),
    ]


def test_what_means_nothing_is_left_out_and_every_cell_is_there_once() -> None:
    blocks: list[dict[str, Any]] = [
        {"what": ["none", "attention_dropout"], "ratio": 0.1, "schedule": ["constant", "decreasing"], "window_size": 5},
        {"ratio": 0.1, "schedule": "constant", "match_mean": [False, True], "window_size": [2, 3]},
    ]
    constant = Cell("dropkey", 0.1, "constant", structure="element")
    assert cells_of(blocks, source="grid") == [Cell(), Cell("attention_dropout", 0.1), constant]


def test_a_ratio_has_the_digits_that_its_name_and_the_table_have(tmp_path: Path) -> None:
    cells = cells_of([{"ratio": [1 / 3, 0.1 + 0.2]}], source="grid")
    assert [cell.ratio for cell in cells] == [0.0, 0.333333, 0.3]
    write_rows(tmp_path / "ablation.csv", [Row(cell, 0) for cell in cells])
    assert [row.cell for row in read_rows(tmp_path / "ablation.csv")] == cells


@pytest.mark.parametrize(
    ("name", "count"), {"quick": 5, "paper": 1 + 3 + 9 + 2 + 1 + 2, "full": 1 + 4 + 9 + 2 + 3 + 4 + 1}.items()
)
def test_named_grids_have_the_cells_that_a_hand_count_gives(name: str, count: int) -> None:
    assert tuple(GRIDS) == GRID_NAMES
    cells = cells_of(GRIDS[name], source=name)
    assert len(cells) == len({cell.name for cell in cells}) == count


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"wat": "dropkey"}, r"grid names 'wat'; expected what, ratio, schedule.*; did you mean 'what'\?"),
        ({"what": "dropky", "ratio": 0.1}, r"what 'dropky' is unknown: .* did you mean 'dropkey'\?"),
        ({"what": "dropkey"}, r"grid has dropkey with ratio None; expected shares above 0"),
        ({"ratio": [0.1, 1.0]}, r"ratio 1.0 is not a drop ratio"),
        ({"ratio": 0.9999999}, r"ratio 1.0 is not a drop ratio"),
        ({"ratio": "much"}, r"dropkey with ratio 'much'"),
        ({"ratio": 0.1, "schedule": "up"}, r"schedule 'up' is unknown"),
        ({"ratio": 0.1, "remedy": "finnish"}, r"remedy 'finnish' is unknown: .* did you mean 'finish'\?"),
        ({"ratio": 0.1, "match_mean": "maybe"}, r"match_mean 'maybe'; expected true or false"),
        ({"ratio": 0.1, "structure": "block", "window_size": 0}, r"window_size 0; expected a number of tokens"),
        ("dropkey", r"grid holds 'dropkey'; expected fields such as"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(block: Any, message: str) -> None:  # noqa: ANN401 - what a file may hold
    with pytest.raises(InputError, match=message):
        cells_of([block], source="grid")
