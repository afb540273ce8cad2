"""``dropkey ablate``: the same recipe over a grid of settings and several seeds, and which differences are noise."""

import json
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from rich.console import Console

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.grid import BASELINE, GRIDS, cells_of
from dropkey_cli.ablation.parallel import Ended, run_jobs
from dropkey_cli.ablation.results import Row, read_rows, write_rows
from dropkey_cli.checkpoints import RUNS, check_run_name
from dropkey_cli.commands.ablate_training import RESULT, Training, rows_of, train
from dropkey_cli.commands.command_line import check_words, configs_first, underscored
from dropkey_cli.commands.config_errors import tool_parser
from dropkey_cli.commands.early_errors import check_early
from dropkey_cli.commands.own_options import flags_spelled_out
from dropkey_cli.commands.tool_options import NOT_FOR_ABLATE, TOOLS
from dropkey_cli.commands.yaml_text import load_yaml
from dropkey_cli.data.module import usable_cores
from dropkey_cli.errors import InputError, RunError, did_you_mean
from dropkey_cli.files import whole_file

TABLE, RECORD = "ablation.csv", "recipe.json"
WIDTH = 128
"""Of the table where it goes into a file or pipe."""
COMPARED = ("checkpoint", "mc_samples", "finish_without_dropkey", "finish_lr")
"""Options that rows of one table must have in common."""
LISTS = ("what", "ratio", "schedule", "match_mean", "structure", "window_size", "remedy")


def ablate(words: list[str]) -> None:
    """Train what is missing of the grid, and say what came out.

    Args:
        words: The words after ``dropkey ablate``.

    Raises:
        InputError: If an option is wrong, the folder is that of another ablation, or the recipe is refused.
        RunError: If a training failed; the others have been run.
    """
    check_words(words)
    options, recipe = _split(underscored(words))
    cells = _cells(options)
    check_run_name(options.name)
    folder = RUNS / options.name
    rows = _kept(folder, recipe, {name: options[name] for name in COMPARED})
    trainings = _trainings(options, recipe, cells)
    missing = _missing(trainings, rows)
    slots = options.jobs or torch.cuda.device_count() or usable_cores()
    _print_plan(options, cells, folder, len(trainings), len(missing), slots)
    missing = {replace(training, slots=min(slots, len(missing))): wanted for training, wanted in missing.items()}
    try:
        _run(missing, rows, folder, options.metric)
    finally:
        _report(folder, rows, options.metric)
    asked = {(cell, training.seed) for training, wanted in missing.items() for cell in wanted}
    if failed := [row for row in rows if row.error and (row.cell, row.seed) in asked]:
        raise RunError(
            f"{len(failed)} of {len(asked)} results are missing (see {folder / TABLE}): the same command tries again"
        )


def _split(words: list[str]) -> tuple[Namespace, tuple[str, ...]]:
    """The options of our own, and those of the recipe, for fit."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for option in TOOLS["ablate"].options:
        parser.add_argument(f"--{option.name}", nargs="?", const="true" if option.type is bool else "")
    known, rest = parser.parse_known_args(words)
    for word in rest:
        if (name := word.partition("=")[0].removeprefix("--")) in NOT_FOR_ABLATE:
            raise InputError(f"--{name} is no option of ablate: {NOT_FOR_ABLATE[name]}")
    given = [f"--{name}={value}" for name, value in vars(known).items() if value is not None]
    options = tool_parser("ablate").parse_args(given)
    recipe = configs_first(flags_spelled_out("fit", rest))
    check_early("fit", recipe)
    return options, tuple(recipe)


def _cells(options: Namespace) -> list[Cell]:
    lists = {name: _listed(options[name]) for name in LISTS if options[name] is not None}
    if lists and options.grid is not None:
        raise InputError(f"--grid {options.grid!r} says the whole grid: leave it out, or --{next(iter(lists))}")
    if lists:
        kinds = lists.pop("what", ["none", "attention_dropout", "dropkey"])
        blocks: list[Any] = [{"what": what, **lists} for what in kinds]
        return cells_of(blocks, source="the command line")
    return cells_of(_grid(options.grid or "quick"), source=f"--grid {options.grid or 'quick'}")


def _listed(given: str) -> list[Any]:
    return [load_yaml(word) for word in given.strip("[] ").split(",")]


def _grid(given: str) -> list[Any]:
    """The blocks of a named grid, or of a YAML file."""
    if given in GRIDS:
        return [*GRIDS[given]]
    if not Path(given).is_file():
        raise InputError(
            f"--grid {given!r} is no grid and no file: give {', '.join(GRIDS)}, or a YAML file{did_you_mean(given, GRIDS)}"
        )
    try:
        blocks = load_yaml(Path(given).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"--grid {given!r} is not valid YAML: {error}") from error
    if not isinstance(blocks, list):
        raise InputError(f"--grid {given!r} holds no list: give lines such as - {{what: dropkey, ratio: [0.1, 0.3]}}")
    return blocks


def _trainings(options: Namespace, recipe: tuple[str, ...], cells: list[Cell]) -> dict[Training, list[Cell]]:
    """What is trained, seed by seed, and the cells that each answers: Monte Carlo is only another evaluation."""
    finish = [f"--{name}={options[name]}" for name in ("finish_without_dropkey", "finish_lr") if options[name] is not None]
    answered: dict[Cell, list[Cell]] = {}
    for cell in cells:
        answered.setdefault(replace(cell, remedy="none") if cell.remedy == "monte_carlo" else cell, []).append(cell)
    return {
        Training(
            trained,
            seed,
            options.name,
            ("--report=false", *recipe),
            tuple(finish),
            options.mc_samples if any(cell.remedy == "monte_carlo" for cell in wanted) else 0,
            options.checkpoint,
            options.attention,
        ): wanted
        for seed in range(options.seeds)
        for trained, wanted in answered.items()
    }


def _missing(trainings: dict[Training, list[Cell]], rows: list[Row]) -> dict[Training, list[Cell]]:
    done = {(row.cell, row.seed) for row in rows if not row.error}
    left = {one: [cell for cell in wanted if (cell, one.seed) not in done] for one, wanted in trainings.items()}
    return {training: wanted for training, wanted in left.items() if wanted}


def _kept(folder: Path, recipe: tuple[str, ...], compared: dict[str, Any]) -> list[Row]:
    """The rows of earlier calls; the folder is made ours.

    Raises:
        InputError: If it is that of another recipe.
    """
    configs = [word for before, word in zip(("", *recipe), recipe, strict=False) if before == "--config"]
    texts = {path: Path(path).read_text(encoding="utf-8") for path in configs}
    ours = {"options": list(recipe), "configs": texts, "compared": compared}
    record, table = folder / RECORD, folder / TABLE
    begun = table.is_file() or any(folder.glob("*/seed_*/version_*"))  # a run that was stopped is gone on with, too
    if begun and (not record.is_file() or json.loads(record.read_text(encoding="utf-8")) != ours):
        raise InputError(f"{folder} holds an ablation of another recipe (see {record}): give another --name, or that recipe")
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(record, "w", encoding="utf-8") as file:
        json.dump(ours, file, indent=1)
    return read_rows(table) if table.is_file() else []


def _run(missing: dict[Training, list[Cell]], rows: list[Row], folder: Path, metric: str | None) -> None:
    """Train, and keep the table up to date."""
    spent: list[float] = []
    jobs = list(missing)
    preload = ["dropkey_cli.commands.run", "dropkey_cli.commands.ablate_training"]
    with closing(run_jobs(train, jobs, num_slots=jobs[0].slots if jobs else 1, preload=preload)) as running:
        for ended in running:
            result = _result(ended)
            if result.get("usage") and ended.job.cell == BASELINE:
                raise InputError(result["error"])
            new = rows_of(ended.job, missing[ended.job], result)
            rows[:] = [row for row in rows if (row.cell, row.seed) not in {(each.cell, each.seed) for each in new}] + new
            write_rows(folder / TABLE, rows)
            if not new[0].error:  # one that failed, or was evaluated for nobody, is gone on with
                shutil.rmtree(folder / new[0].run / "checkpoints", ignore_errors=True)
            spent.append(ended.seconds)
            left = (len(jobs) - len(spent)) * sum(spent) / len(spent) / ended.job.slots
            print(f"[{len(spent)}/{len(jobs)}] {_line(ended, new[0], metric)} · {_duration(left)} left", flush=True)


def _result(ended: Ended[Training]) -> dict[str, Any]:
    """What a training left; where it left nothing, how its process ended."""
    file = ended.job.folder / RESULT
    if file.is_file():
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return result
    how = f"by signal {-ended.code}" if ended.code < 0 else f"with exit code {ended.code}"
    return {"error": f"its process ended {how} (see {ended.job.folder / 'log.txt'})"}


def _line(ended: Ended[Training], row: Row, given: str | None) -> str:
    what = f"{ended.job.cell.name} seed {ended.job.seed}"
    if row.error:
        return f"{what} failed: {row.error}"
    metric = _metric([row], given)
    return f"{what}: {metric} {row.metrics[metric]:.4f} · {_duration(ended.seconds)}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def _metric(rows: Iterable[Row], given: str | None) -> str:
    """The metric that is compared, on the test images if there are some."""
    names = {name for row in rows for name in row.metrics}
    stage = "test" if any(name.startswith("test/") for name in names) else "val"
    known = [name.removeprefix(f"{stage}/") for name in sorted(names) if name.startswith(f"{stage}/")]
    wanted = given or next((name for name in ("acc1", "map", *known) if name in known and name != "loss"), "loss")
    if known and wanted not in known:
        raise InputError(
            f"--metric {wanted!r} is none of those that were measured: give {', '.join(known)}{did_you_mean(wanted, known)}"
        )
    return f"{stage}/{wanted}"


def _report(folder: Path, rows: list[Row], given: str | None) -> None:
    """Say what came out, also when the ablation was stopped."""
    metric = _metric(rows, given)
    if not any(metric in row.metrics for row in rows):
        return
    from dropkey_cli.ablation.attention import draw_attention_of
    from dropkey_cli.ablation.figures import draw_figures
    from dropkey_cli.ablation.statistics import better_sign
    from dropkey_cli.ablation.summary import write_summary

    chooser = metric if better_sign(metric) else _metric(rows, None)
    selection = f"val/{chooser.partition('/')[2]}"
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(write_summary(folder, rows, metric=metric, selection_metric=selection))
    pictures = [*draw_figures(folder, rows, metric), *draw_attention_of(folder, rows, selection)]
    names = dict.fromkeys(path.stem for path in pictures)
    print(f"written     {folder}: {TABLE}, summary.md, summary.csv{''.join(f', {name}.png' for name in names)}")


def _print_plan(options: Namespace, cells: list[Cell], folder: Path, total: int, left: int, slots: int) -> None:
    trained = total // options.seeds
    print(f"ablation    {len(cells)} cells, of which {trained} are trained, × {options.seeds} seeds = {total} trainings")
    for cell in cells:
        print(f"            {cell.name}")
    print(
        f"compared    the {options.checkpoint} weights of each; those of one seed share initial weights and the images' order"
    )
    print(f"folder      {folder}; the same command again goes on where this one was stopped")
    print(f"progress    a line per training that has ended; {folder}/CELL/seed_N/log.txt of those that run")
    print(f"to train    {left}, {min(slots, left)} at a time; {total - left} are there already", flush=True)
