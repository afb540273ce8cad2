from pathlib import Path

import pytest
import torch
from lightning import Trainer

from dropkey_cli.callbacks.patience import Patience
from tests.callbacks.small_fits import Line, fit

METRICS = [0.1, 0.3, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.5]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*callbacks used to create.*")


def epochs(metrics: list[float], patience: int, **options: int) -> Trainer:
    return fit(Line(metrics), Patience("val/slope", patience), **{"max_epochs": len(metrics), **options})


@pytest.mark.parametrize(("patience", "ends", "best"), [(1, 3, 0.3), (2, 4, 0.3), (3, 8, 0.4), (4, 9, None)])
def test_a_run_ends_after_so_many_validations_without_a_new_best(
    patience: int, ends: int, best: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert epochs(METRICS, patience).current_epoch == ends
    out = capsys.readouterr().out
    if best is None:
        assert out == ""
    else:
        validations = "1 validation" if patience == 1 else f"{patience} validations"
        assert out == f"stopped early: val/slope was not above {best:.4f} in the last {validations} (--patience)\n"


def test_validations_within_an_epoch_count(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = epochs(METRICS, 2, val_check_interval=2)  # two validations in each of the epochs
    assert trainer.global_step == 8
    assert "in the last 2 validations" in capsys.readouterr().out


def test_a_metric_that_is_no_number_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert epochs([0.1, float("nan"), 0.3], 5).current_epoch == 2
    assert capsys.readouterr().out == "stopped early: val/slope is not finite\n"


def test_a_run_that_is_at_its_end_anyway_has_not_stopped_early(capsys: pytest.CaptureFixture[str]) -> None:
    assert epochs([0.3, 0.2, 0.1], 2).current_epoch == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("patience", "resumed", "more"), [(2, True, 0), (3, True, 4), (2, False, 3)])
def test_a_run_goes_on_only_by_a_longer_patience_and_another_one_begins_anew(
    patience: int, resumed: bool, more: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = epochs(METRICS, 2)
    first.save_checkpoint(tmp_path / "a.ckpt")
    assert isinstance(torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"], dict)  # nothing but plain data
    capsys.readouterr()
    second = fit(
        Line(METRICS[4:]), Patience("val/slope", patience, resumed=resumed), max_epochs=9, ckpt_path=tmp_path / "a.ckpt"
    )
    assert second.current_epoch == 4 + more
    assert "stopped early: val/slope was not above" in capsys.readouterr().out


def test_the_plan_says_it() -> None:
    assert Patience("val/slope", 5).plan_lines() == [("patience", "ends after 5 validations without a higher val/slope")]
