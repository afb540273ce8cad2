from pathlib import Path

import pytest
import torch

from dropkey_cli.report.curves import POINTS, curve_figures, read_curves


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("epoch,step,train/loss,val/loss,val/acc1,val/x,drop_ratio/mean,train/lr", *lines)) + "\n")
    return path


def test_columns_become_curves_over_steps(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "0,9,2.5,,,,,", "0,9,,,,,0.15,0.001", "0,19,,1.5,0.5,7,,", "0,29,nan,,,,,", "0,39,cut")
    curves = read_curves(path)
    assert (curves["train/loss"].steps[0], curves["train/loss"].values[0]) == (10, 2.5)
    assert (curves["val/loss"].steps, curves["val/loss"].values) == ([20], [1.5])
    charts = {name: [line.get_label() for line in figure.axes[0].lines] for name, figure in curve_figures(curves, 20)}
    assert charts == {
        "loss": ["train/loss", "val/loss", "best"],
        "accuracy": ["val/acc1", "best"],  # val/x is none
        "learning rate": ["train/lr", "best"],
        "drop ratio (mean over layers)": ["drop_ratio/mean", "best"],
    }


def test_a_run_without_a_column_has_no_chart_of_it(tmp_path: Path) -> None:
    figures = dict(curve_figures(read_curves(write(tmp_path / "m.csv", "0,9,2.5,,,,,")), None))
    assert list(figures) == ["loss"]
    assert len(figures["loss"].axes[0].lines) == 1


def test_attention_has_a_chart_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    names = (
        "val/acc1",
        "val/attention_top_key",
        "val/attention_entropy",
        "train/attention_entropy",
        "train/attention_entropy/a",
    )
    path.write_text(f"step,{','.join(names)}\n9,0.5,0.1,0.7,0.6,0.6\n")
    charts = {
        name: [line.get_label() for line in figure.axes[0].lines] for name, figure in curve_figures(read_curves(path), None)
    }
    assert charts == {
        "accuracy": ["val/acc1"],
        "entropy of attention (nats)": ["train/attention_entropy", "val/attention_entropy"],
    }


def test_long_runs_are_put_together(tmp_path: Path) -> None:
    steps = 5 * POINTS + 3
    path = write(tmp_path / "m.csv", *(f"0,{step},{step},,,,," for step in range(steps)))
    _, figure = next(curve_figures(read_curves(path), None))
    values = torch.as_tensor(figure.axes[0].lines[0].get_ydata()).tolist()
    assert len(values) <= POINTS
    assert values[0] == pytest.approx(2.5)  # the mean of six
