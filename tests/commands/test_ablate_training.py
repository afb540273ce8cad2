import os
from pathlib import Path

import pytest
import torch

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.commands.ablate_training import Training, _take_share, _train, cell_words, rows_of
from dropkey_cli.commands.run import RunCLI, run
from tests.commands.conftest import QUICKSTART

FINISH = ("--finish_without_dropkey=0.1",)
DROPKEY = Cell("dropkey", 0.3, "increasing", match_mean=True, structure="block", window_size=2)


class Parsed(Exception):
    """Ends a run once its classes are there."""


class Kept(RunCLI):
    """Keeps the task."""

    def _run_subcommand(self, subcommand: str) -> None:
        raise Parsed(self.model)


def told(cell: Cell) -> dict[str, object]:
    """What fit understands of a cell's words."""
    with pytest.raises(Parsed) as parsed:
        run("fit", ["--config", QUICKSTART, "--trainer.fast_dev_run=true", *cell_words(cell)], cli=Kept)
    task = parsed.value.args[0]
    return {
        "dropkey": task.dropkey,
        "attention_dropout": task.model_args.get("attn_drop_rate"),
        "depth": task.model_args["depth"],
    }


def test_fit_is_told_what_a_cell_says_and_the_rest_of_the_recipe_stays() -> None:
    assert told(Cell()) == {"dropkey": None, "attention_dropout": None, "depth": 6}
    assert told(Cell("attention_dropout", 0.1)) == {"dropkey": None, "attention_dropout": 0.1, "depth": 6}
    found = told(DROPKEY)
    settings = found["dropkey"]
    assert [getattr(settings, name) for name in ("ratio", "schedule", "match_mean", "structure", "window_size")] == [
        0.3, "increasing", True, "block", 2,
    ]  # fmt: skip
    assert (found["attention_dropout"], found["depth"]) == (None, 6)


def test_only_the_remedy_finish_has_its_options() -> None:
    assert cell_words(Cell("dropkey", 0.3, "constant", structure="key", remedy="finish"), FINISH)[-1] == FINISH[0]
    assert FINISH[0] not in cell_words(Cell("dropkey", 0.3, "constant", structure="key"), FINISH)


def test_one_training_answers_its_cell_and_that_of_monte_carlo() -> None:
    cells = [DROPKEY, Cell("dropkey", 0.3, "increasing", True, "block", 2, "monte_carlo")]
    training = Training(DROPKEY, 3, "mine", ())
    evaluations = {"none": {"test/acc1": 0.5}, "monte_carlo": {"test/acc1": 0.625}}
    rows = rows_of(training, cells, {"run": "version_0", "evaluations": evaluations, "seconds": 2.0})
    assert [(row.cell, row.seed, row.metrics["test/acc1"], row.seconds) for row in rows] == [
        (cells[0], 3, 0.5, 2.0),
        (cells[1], 3, 0.625, 2.0),
    ]
    assert Path(rows[0].run) == Path("dropkey_increasing_mean_0.3_block2/seed_3/version_0")
    failed = rows_of(training, cells, {"error": "too hot"})
    assert [(row.metrics, row.error) for row in failed] == [({}, "too hot")] * 2


def test_a_job_that_slurm_started_again_does_not_take_another_cells_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def parsed(command: str, words: list[str], resumed: Path | None, cli: object) -> None:
        raise Parsed(words, resumed)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    checkpoints = Path("runs/ablation/none/seed_0/version_0/checkpoints")
    checkpoints.mkdir(parents=True)
    for file in (checkpoints / "last.ckpt", checkpoints.parent / "config.yaml"):
        file.touch()
    (checkpoints.parent / "slurm_job").write_text("7")
    monkeypatch.setattr("dropkey_cli.commands.run.run", parsed)
    monkeypatch.setattr("dropkey_cli.commands.ablate_training._be_fit", lambda words: None)
    for seed, expected in ((0, checkpoints.parent), (1, None)):
        with pytest.raises(Parsed) as told:
            _train(Training(Cell(), seed, "ablation", ()))
        assert told.value.args[1] == expected


@pytest.mark.parametrize(
    ("gpus", "visible", "slots", "slot", "expected_gpus", "expected_cores"),
    [
        (8, None, 8, 3, "3", {3}),
        (8, None, 4, 1, "2,3", {2, 3}),
        (2, "5,7", 2, 1, "7", {4, 5, 6, 7}),
        (1, None, 2, 1, "0", {4, 5, 6, 7}),  # two jobs on one GPU
        (0, None, 3, 2, None, {4, 5}),
        (2, None, 1, 0, "0,1", None),  # alone, it takes what there is
    ],
)
def test_jobs_share_gpus_and_cores(
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    visible: str | None,
    slots: int,
    slot: int,
    expected_gpus: str | None,
    expected_cores: set[int] | None,
) -> None:
    taken: dict[str, object] = {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # what comes here is undone at the end
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: taken.update(threads=number))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: taken.update(cores=cores), raising=False)
    _take_share(slot, slots)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected_gpus
    assert taken.get("cores") == expected_cores
    assert taken.get("threads") == (None if expected_cores is None else len(expected_cores))
