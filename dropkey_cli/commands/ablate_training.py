"""One training of an ablation and its evaluations, in a process of their own."""

import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.results import Row
from dropkey_cli.checkpoints import RUNS
from dropkey_cli.errors import InputError, RunError
from dropkey_cli.files import whole_file

RESULT = "result.json"


@dataclass(frozen=True)
class Training:
    """What one process is to do.

    Args:
        cell: What it is told; its remedy is none or finish.
        seed: Its seed.
        name: The ablation's name: its folder is runs/NAME.
        words: The recipe, as options of fit.
        finish: Options of the remedy finish.
        mc_samples: Masks to average over in a second evaluation; 0 for none.
        checkpoint: Which weights are compared: last or best.
        attention: Whether to measure attention at inference, too.
        slots: Number of jobs that share the machine.
    """

    cell: Cell
    seed: int
    name: str
    words: tuple[str, ...]
    finish: tuple[str, ...] = ()
    mc_samples: int = 0
    checkpoint: str = "last"
    attention: bool = False
    slots: int = 1

    @property
    def run_name(self) -> str:
        """The name of its run."""
        return f"{self.name}/{self.cell.name}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it works, relative to the working folder."""
        return RUNS / self.run_name


def cell_words(cell: Cell, finish: tuple[str, ...] = ()) -> list[str]:
    """Options of ``dropkey fit`` that tell a recipe what a cell is.

    Args:
        cell: The cell.
        finish: Those of the remedy finish.
    """
    if cell.what == "none":
        return ["--model.dropkey=null"]
    if cell.what == "attention_dropout":
        return ["--model.dropkey=null", f"--model.model_args.attn_drop_rate={cell.ratio!r}"]
    told = {"ratio": repr(cell.ratio), "schedule": cell.schedule, "match_mean": str(cell.match_mean).lower()}
    told["structure"] = cell.structure
    if cell.window_size is not None:
        told["window_size"] = str(cell.window_size)
    return [*(f"--model.dropkey.{name}={value}" for name, value in told.items()), *(finish if cell.remedy == "finish" else ())]


def train(training: Training, slot: int) -> None:
    """Train, or go on with what was interrupted; evaluate; leave the result in the folder.

    Args:
        training: What to do.
        slot: Number of the place among those that run at a time: it decides which cores and GPUs are taken.
    """
    training.folder.mkdir(parents=True, exist_ok=True)
    _write_to(training.folder / "log.txt")
    _take_share(slot, training.slots)
    start = time.monotonic()
    try:
        run, evaluations = _train(training)
        result: dict[str, Any] = {"run": run.name, "evaluations": evaluations, "seconds": time.monotonic() - start}
    except (InputError, RunError) as error:
        result = {"error": " ".join(str(error).split()), "usage": isinstance(error, InputError)}
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error} (see {training.folder / 'log.txt'})"}
    with whole_file(training.folder / RESULT, "w", encoding="utf-8") as file:
        json.dump(result, file)


def rows_of(training: Training, cells: list[Cell], result: dict[str, Any]) -> list[Row]:
    """The rows of a training that has ended, one per cell that it answers.

    Args:
        training: The training.
        cells: Its cell, that of its Monte Carlo evaluation, or both.
        result: What it left.
    """
    rows = []
    for cell in cells:
        row = Row(cell, training.seed, run=f"{training.cell.name}/seed_{training.seed}/{result.get('run', '')}")
        metrics = result.get("evaluations", {}).get("monte_carlo" if cell.remedy == "monte_carlo" else "none", {})
        rows.append(replace(row, metrics=metrics, seconds=result.get("seconds", 0.0), error=result.get("error", "")))
    return rows


def _train(training: Training) -> tuple[Path, dict[str, dict[str, float]]]:
    import torch.distributed as dist

    from dropkey_cli.commands.resume import resumed_run
    from dropkey_cli.commands.run import RunCLI, run

    checkpoints = training.folder.glob("version_*/checkpoints/last.ckpt")
    unfinished = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
    words = [*training.words, *cell_words(training.cell, training.finish)]
    words += [f"--seed_everything={training.seed}", f"--name={training.run_name}"]
    resumed = None  # not the newest run of a SLURM job that was started again: that is another cell's
    if unfinished is not None:
        words = [f"--resume={unfinished.parent.parent}", *words]
    _be_fit(words)
    if unfinished is not None:
        words, resumed = resumed_run("fit", words)
    kept: list[RunCLI] = []
    run("fit", words, resumed=resumed, cli=lambda *given: kept.append(RunCLI(*given)))
    if dist.is_initialized():  # what comes now is for one process
        dist.destroy_process_group()
    folder = kept[0].folder
    if folder is None:
        raise InputError("--trainer.fast_dev_run keeps no run to evaluate: give --trainer.max_epochs 1")
    evaluations = {"none": _evaluate(training, folder, f"--attention={str(training.attention).lower()}")}
    if training.mc_samples:
        evaluations["monte_carlo"] = _evaluate(training, folder, f"--mc_samples={training.mc_samples}")
    return folder, evaluations


def _evaluate(training: Training, folder: Path, *options: str) -> dict[str, float]:
    """Metrics on the validation images and, where there are some, on the test images."""
    from dropkey_cli.commands.run import RunCLI, run

    words = [f"--config={folder / 'config.yaml'}", f"--ckpt_path={folder / 'checkpoints' / f'{training.checkpoint}.ckpt'}"]
    words += ["--trainer.devices=1", "--trainer.num_nodes=1", "--report=false", *options]
    metrics: dict[str, float] = {}
    kept: list[RunCLI] = []
    for command in ("validate", "test"):
        if command == "validate" or "test" in getattr(kept[0].datamodule, "splits", ()):
            run(command, words, cli=lambda *given: kept.append(RunCLI(*given)))
            metrics |= {name: float(value) for name, value in kept[-1].trainer.callback_metrics.items()}
    return metrics


def _write_to(log: Path) -> None:
    """Send what this process prints, and those that it starts, into a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _take_share(slot: int, slots: int) -> None:
    """Keep to this job's share of the cores and GPUs."""
    import torch

    count = torch.cuda.device_count()
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(str(number) for number in range(count))).split(",")
        share = max(1, count // slots)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[(slot * share + each) % count] for each in range(share))
    if slots > 1 and hasattr(os, "sched_setaffinity"):  # threads and data loaders follow; not on macOS and Windows
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // slots)
        os.sched_setaffinity(0, {cores[(slot * share + each) % len(cores)] for each in range(share)})
        torch.set_num_threads(share)


def _be_fit(words: list[str]) -> None:
    """Be ``dropkey fit`` to Lightning, which starts the other processes of a run by this one's command line."""
    import __main__

    sys.argv = [str(Path(__file__).parents[1] / "__main__.py"), "fit", *words]
    __main__.__spec__ = None
