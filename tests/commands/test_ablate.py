import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.parallel import Ended
from dropkey_cli.ablation.results import Row, read_rows, write_rows
from dropkey_cli.commands import ablate as ablate_module
from tests.commands import forks
from tests.commands.conftest import QUICKSTART, Dropkey

FOLDER = Path("runs/ablation")
CELL = "dropkey_decreasing_0.3_element"
RECIPE = ("--config", QUICKSTART, "--trainer.max_epochs=8", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2")
TINY = (
    "ablate",
    *RECIPE,
    "--ratio=0.3",
    "--what=dropkey",
    "--remedy=none,monte_carlo",
    "--mc_samples=2",
    "--seeds=1",
    "--jobs=1",
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on: this process has threads
def test_a_grid_is_interrupted_goes_on_and_gives_what_single_commands_give(dropkey: Dropkey, tmp_path: Path) -> None:
    process = forks.start(TINY, tmp_path)
    forks.wait_for((FOLDER / CELL / "seed_0/version_0/checkpoints/last.ckpt").is_file)
    os.kill(process, signal.SIGTERM)
    assert forks.end(process) == 143
    table = FOLDER / "ablation.csv"
    assert [row.cell for row in read_rows(table)] == [Cell()]
    first = {file: file.stat().st_mtime_ns for file in (FOLDER / "none").rglob("*")}

    assert dropkey(*TINY).code == 0
    assert {file: file.stat().st_mtime_ns for file in (FOLDER / "none").rglob("*")} == first  # not run again
    rows = {row.cell.remedy: row for row in read_rows(table) if row.cell.what == "dropkey"}
    assert {row.run for row in rows.values()} == {f"{CELL}/seed_0/version_0"}  # gone on with, not begun anew
    assert not list(FOLDER.rglob("*.ckpt"))

    words = ("--model.dropkey.ratio=0.3", "--seed_everything=0", "--report=false")
    assert dropkey("fit", *RECIPE, *words).code == 0
    outcome = dropkey(
        "test", "--ckpt_path=last", "--report=false", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"
    )
    assert outcome.code == 0, outcome.err
    (logged,) = csv.DictReader(next(Path("logs").rglob("metrics.csv")).read_text().splitlines())
    for name in ("test/loss", "test/acc1"):
        assert rows["none"].metrics[name] == pytest.approx(float(logged[name]), rel=1e-6)
    assert rows["monte_carlo"].metrics["test/loss"] != rows["none"].metrics["test/loss"]

    again = dropkey(*TINY)
    assert "to train    0" in again.out
    assert "one seed says nothing" in again.out
    assert {"ablation.csv", "summary.md", "summary.csv", "remedy.png"} <= {file.name for file in FOLDER.iterdir()}


def test_a_recipe_that_fit_refuses_ends_the_ablation_with_its_sentence(dropkey: Dropkey) -> None:
    outcome = dropkey("ablate", *RECIPE, "--model.model_name=vit_tiny_patch16_24", "--jobs=1")
    assert outcome.code == 2
    assert "vit_tiny_patch16_224" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--grid=papr",),
            "--grid 'papr' is no grid and no file: give quick, paper, full, or a YAML file; did you mean 'paper'?",
        ),
        (("--grid=paper", "--ratio=0.1"), "--grid 'paper' says the whole grid: leave it out, or --ratio"),
        (("--ratio=0.1,1.5",), "ratio 1.5 is not a drop ratio"),
        (("--seed_everything=3",), "--seed_everything is no option of ablate: give --seeds N"),
        (("--resume", "last"), "the same command again goes on"),
        (("--name=../elsewhere",), "--name '../elsewhere' is no folder name: give a word such as --name my_run"),
        (("--seeds=0",), "0 does not conform to restriction v>0"),
        (("--schedule=constant",), "ratio None; expected shares above 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    refused: Callable[..., str], words: tuple[str, ...], message: str
) -> None:
    assert message in refused("ablate", *RECIPE, *words)
    assert not FOLDER.exists()


def test_the_folder_of_another_recipe_is_refused(dropkey: Dropkey, refused: Callable[..., str]) -> None:
    FOLDER.mkdir(parents=True)
    write_rows(FOLDER / "ablation.csv", [Row(Cell(), 0, {"test/acc1": 0.5})])
    (FOLDER / "recipe.json").write_text('{"options": [], "configs": {}}')
    assert "runs/ablation holds an ablation of another recipe" in refused("ablate", *RECIPE)


def test_a_stopped_training_is_not_gone_on_with_under_another_recipe(refused: Callable[..., str]) -> None:
    (FOLDER / "none/seed_0/version_0").mkdir(parents=True)  # stopped before the first row
    (FOLDER / "recipe.json").write_text('{"options": [], "configs": {}}')
    assert "runs/ablation holds an ablation of another recipe" in refused("ablate", *RECIPE)


def test_results_that_are_missing_are_said_with_exit_code_1(dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = lambda work, jobs, **_: (Ended(job, -9, 1.0) for job in jobs)  # noqa: E731
    monkeypatch.setattr(ablate_module, "run_jobs", killed)
    outcome = dropkey("ablate", *RECIPE, "--what=none", "--ratio=0.3", "--seeds=1", "--jobs=1")
    assert outcome.code == 1
    assert "1 of 1 results are missing (see runs/ablation/ablation.csv): the same command tries again" in outcome.err


@pytest.mark.parametrize(
    ("names", "words", "compared", "chosen"),
    [
        (("acc1", "loss", "attention_entropy"), (), "acc1", "acc1"),
        (("map", "loss", "exact_match", "attention_entropy"), (), "map", "map"),
        (("acc1", "loss", "attention_entropy"), ("--metric=attention_entropy",), "attention_entropy", "acc1"),
    ],
)
def test_what_is_compared_and_by_what_the_best_is_chosen(
    dropkey: Dropkey,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    words: tuple[str, ...],
    compared: str,
    chosen: str,
) -> None:
    monkeypatch.setattr(ablate_module, "run_jobs", lambda work, jobs, **_: (Ended(job, -9, 1.0) for job in jobs))
    command = ("ablate", *RECIPE, "--what=dropkey", "--ratio=0.1,0.3", "--seeds=2", "--jobs=1", *words)
    assert dropkey(*command).code == 1  # the table is there, without numbers
    rows = read_rows(FOLDER / "ablation.csv")
    metrics = {f"{stage}/{name}": 0.5 for stage in ("val", "test") for name in names}
    write_rows(FOLDER / "ablation.csv", [Row(row.cell, row.seed, metrics) for row in rows])
    assert dropkey(*command).code == 0
    text = (FOLDER / "summary.md").read_text(encoding="utf-8")
    assert text.startswith(
        f"# Ablation: test/{compared}\n\n- Chosen by the mean val/{chosen}: “DropKey decreasing 0.1” out of 2."
    )
    assert ("flatters" in text) == (compared == chosen)
