import pytest

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.results import Row

# Gains over none, by cell: exact means over the eight seeds, with noise of ±0.002 that is each cell's own (a Walsh function)
GAINS = {
    Cell(): 0.0,
    Cell("attention_dropout", 0.1): 0.020,
    Cell("attention_dropout", 0.3): 0.025,
    Cell("dropkey", 0.1, "decreasing", structure="element"): 0.015,
    Cell("dropkey", 0.3, "decreasing", structure="element"): 0.026,
    Cell("dropkey", 0.3, "increasing", structure="element"): 0.010,
    Cell("dropkey", 0.3, "decreasing", structure="block", window_size=2): 0.012,
    Cell("dropkey", 0.3, "decreasing", structure="element", remedy="finish"): 0.030,
}


@pytest.fixture
def table() -> list[Row]:
    """Eight cells and eight seeds; one training failed."""
    rows = []
    for place, (cell, gain) in enumerate(GAINS.items()):
        for seed in range(8):
            noise = 0.002 * (-1) ** (seed & place).bit_count() if place else 0.0
            value = 0.9 + 0.001 * seed + gain + noise
            rows.append(Row(cell, seed, {"val/acc1": value, "test/acc1": value, "test/loss": 1 - value}))
    rows[-1] = Row(rows[-1].cell, 7, error="out of memory")
    return rows
