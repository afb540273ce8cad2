from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor

from dropkey_cli.report.drop_ratios import MAX_COLUMNS, draw_drop_ratios


def write(path: Path, ends: list[int], ratio: Callable[[int, int], float], *, layers: int = 3, draws: int = 1000) -> None:
    """A file whose observed ratios are half of the configured ones."""
    lines = [
        f"{end - 1},blocks.{layer}.attn,{ratio(layer, end)},{ratio(layer, end) / 2},{ratio(layer, end) * draws / 2},{draws}\n"
        for end in ends
        for layer in range(layers)
    ]
    path.write_text("step,layer,configured,observed,dropped,draws\n" + "".join(lines))


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[list[int], Tensor, dict[str, Any]]]]:
    """Draws rows.csv and gives the borders in time, the values (L, T) and the options of both heat maps."""
    maps: list[tuple[list[int], Tensor, dict[str, Any]]] = []
    original = Axes.pcolormesh

    def pcolormesh(axis: Axes, x: list[int], y: list[float], values: Any, **options: Any) -> Any:  # noqa: ANN401
        maps.append((x, torch.as_tensor(values), options))
        return original(axis, x, y, values, **options)

    monkeypatch.setattr(Axes, "pcolormesh", pcolormesh)

    def draw() -> list[tuple[list[int], Tensor, dict[str, Any]]]:
        maps.clear()
        draw_drop_ratios(tmp_path / "rows.csv", tmp_path / "picture.png")
        assert not maps or (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        return maps[:2]  # the third is the scale

    return draw


def test_both_maps_show_every_cell_on_one_scale(tmp_path: Path, drawn: Callable[[], Any]) -> None:
    write(tmp_path / "rows.csv", [10, 20, 25], lambda layer, end: 0.1 * layer * end / 25)
    (ends, configured, options), (same_ends, observed, same_options) = drawn()
    assert ends == same_ends == [0, 10, 20, 25]
    expected = torch.tensor([[0.1 * layer * end / 25 for end in (10, 20, 25)] for layer in range(3)], dtype=torch.float64)
    assert torch.allclose(configured, expected)
    assert torch.allclose(observed, expected / 2)
    assert (options["vmin"], options["vmax"]) == (same_options["vmin"], same_options["vmax"])
    assert (options["vmin"], options["vmax"]) == (0, pytest.approx(0.2))


@pytest.mark.parametrize("steps", [MAX_COLUMNS, MAX_COLUMNS + 1, 3 * MAX_COLUMNS + 7])
def test_long_runs_are_put_together(tmp_path: Path, drawn: Callable[[], Any], steps: int) -> None:
    write(tmp_path / "rows.csv", list(range(1, steps + 1)), lambda layer, end: 0.3 * end / steps, layers=1)
    ends, configured, _ = drawn()[0]
    assert len(ends) - 1 == configured.shape[1] <= MAX_COLUMNS
    assert configured.shape[1] > MAX_COLUMNS // 2 - 1
    assert (ends[0], ends[-1]) == (0, steps)
    widths = torch.tensor(ends).diff()
    assert float((configured[0] * widths).sum()) == pytest.approx(0.3 * (steps + 1) / 2)  # nothing is left out


def test_steps_put_together_weigh_by_their_draws(tmp_path: Path, drawn: Callable[[], Any]) -> None:
    rows = ["step,layer,configured,observed,dropped,draws"]
    for step in range(2 * MAX_COLUMNS):
        rows.append(f"{step},a,0.2,0.1,3,30" if step % 2 else f"{step},a,0.4,0.4,4,10")
        rows.append(f"{step},b,0,0,0,0" if step % 2 else f"{step},b,0.4,0.4,4,10")
        rows.append(f"{step},c,0.4,0,0,0")
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    (_, configured, _), (_, observed, _) = drawn()
    assert configured[:, 0].tolist() == pytest.approx([0.25, 0.4, 0.4])
    assert observed[:, 0].tolist() == pytest.approx([7 / 40, 0.4, 0.0])


@pytest.mark.parametrize("end", ["30,blocks.0.attn,0.1,0.1,1,10\n", "30,blocks.0.attn,0.1", "30"])
def test_a_logging_step_cut_short_is_left_out(tmp_path: Path, drawn: Callable[[], Any], end: str) -> None:
    write(tmp_path / "rows.csv", [10, 20], lambda layer, end: 0.1)
    with (tmp_path / "rows.csv").open("a") as file:
        file.write(end)
    assert drawn()[0][0] == [0, 10, 20]


@pytest.mark.parametrize("text", ["", "step,layer,configured,observed,dropped,draws\n"])
def test_without_rows_nothing_is_drawn(tmp_path: Path, drawn: Callable[[], Any], text: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    assert drawn() == []
    assert not (tmp_path / "picture.png").exists()


def test_ratios_that_are_all_0_are_drawn(tmp_path: Path, drawn: Callable[[], Any]) -> None:
    write(tmp_path / "rows.csv", [10], lambda layer, end: 0.0, layers=40)
    assert drawn()[0][2]["vmax"] == 1
