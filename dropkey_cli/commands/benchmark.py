"""``dropkey benchmark``: what DropKey costs on this machine, in time and memory, beside attention without it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from dropkey_cli.benchmark.attention import CPU_SHAPES, GPU_SHAPES, AttentionRow, Shape, Skipped, measure_attention
from dropkey_cli.benchmark.machine import describe_machine
from dropkey_cli.benchmark.report import check_json, notes, print_table, skipped_lines, to_json, write_json
from dropkey_cli.benchmark.settings import BenchmarkSettings, Precision, find_device, find_precision, memory_hint
from dropkey_cli.benchmark.step import Network, StepRow, measure_steps
from dropkey_cli.benchmark.timing import clock_for
from dropkey_cli.commands.config_errors import OneLineParser
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import check_ratio
from dropkey_cli.models.factory import image_config
from dropkey_cli.models.sources import resolve_name

DESCRIPTION = """\
What DropKey costs on this machine, in time and memory: attention alone on built-in shapes or, with --model, a whole training
step. dropkey benchmark --fit times a training run and says where its time goes.
"""
ATTENTION_ROUNDS, STEP_ROUNDS = 15, 9
SHAPES = list[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]] | None
CPU_BATCH, GPU_BATCH = 8, 128


class Measured(NamedTuple):
    """One table."""

    title: str
    batch_size: int
    rows: list[AttentionRow] | list[StepRow]
    skipped: list[Skipped]


def benchmark(words: list[str]) -> None:
    """Measure, and print one table per shape, or that of a model.

    Args:
        words: The words after ``dropkey benchmark``.

    Raises:
        InputError: If an option is wrong, the device lacks what is asked for, or memory runs out.
    """
    if "--fit" in words:
        from dropkey_cli.commands.benchmark_fit import benchmark_fit

        benchmark_fit([word for word in words if word != "--fit"])
        return
    options = _parser().parse_args(words)
    settings = _settings(options)
    report: dict[str, Any] = {"machine": describe_machine(settings.device), "settings": _describe(settings), "tables": []}
    for name, fact in {**report["machine"], **report["settings"]}.items():
        print(f"{name:<10} {fact}")
    skipped: list[Skipped] = []
    for measured in _attention(options, settings) if options.model is None else _step(options, settings):
        print_table(measured.title, measured.rows, batch_size=measured.batch_size)
        report["tables"].append(_plain(measured))
        skipped += measured.skipped
    print("", *notes(measured.rows), *skipped_lines(skipped), sep="\n")
    write_json(options.json, report)


def _attention(options: Namespace, settings: BenchmarkSettings) -> Iterator[Measured]:
    """One table per shape, as soon as it is measured."""
    shapes = GPU_SHAPES if settings.device.type == "cuda" else CPU_SHAPES
    if options.shapes is not None:
        shapes = [Shape(*sides) for sides in options.shapes]
    for shape in shapes:
        shape = shape if options.batch_size is None else replace(shape, batch_size=options.batch_size)
        with memory_hint(shape.batch_size):
            measured = measure_attention(shape, settings)
        yield Measured(str(shape), shape.batch_size, *measured)


def _step(options: Namespace, settings: BenchmarkSettings) -> Iterator[Measured]:
    name, model_args = resolve_name(options.model, options.model_args)
    size = options.image_size or image_config(name, model_args).image_size
    batch_size = options.batch_size or (GPU_BATCH if settings.device.type == "cuda" else CPU_BATCH)
    network = Network(name, size, batch_size, model_args or {})
    with memory_hint(batch_size):
        measured = measure_steps(network, settings)
    yield Measured(f"{options.model}, {size} pixels, batch size {batch_size}", batch_size, *measured)


def _settings(options: Namespace) -> BenchmarkSettings:
    """The options, checked, with their defaults."""
    _check(options)
    device = find_device(options.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    precision = find_precision(options.precision, device)
    rounds = options.rounds or (ATTENTION_ROUNDS if options.model is None else STEP_ROUNDS)
    if options.num_threads is not None or device.type == "cpu":
        torch.set_num_threads(options.num_threads or 1)
    compiled = options.model is None if options.compile is None else options.compile
    return BenchmarkSettings(device, precision, options.ratio, rounds, torch.get_num_threads(), compiled)


def _check(options: Namespace) -> None:
    if options.model is None and (options.image_size is not None or options.model_args is not None):
        raise InputError("--image_size and --model_args are for a model's training step: give --model NAME, or leave them out")
    if options.model is not None and options.shapes is not None:
        raise InputError("--shapes are for the table of attention alone: leave out --shapes or --model")
    if options.shapes == []:
        raise InputError("--shapes is empty: give e.g. --shapes '[[8, 12, 197, 64]]', or leave it out")
    if options.model is not None:
        image_config(*resolve_name(options.model, options.model_args))  # an unknown name is refused before anything is printed
    check_ratio("ratio", options.ratio)
    if options.ratio == 0:
        raise InputError("ratio 0.0 drops nothing, and that is the first row anyway: give more, e.g. --ratio 0.1")
    check_json(options.json)


def _describe(settings: BenchmarkSettings) -> dict[str, str]:
    return {
        "precision": f"{settings.precision} on {settings.device}",
        "ratio": f"{settings.ratio:g} in every layer",
        "timing": f"{clock_for(settings.device, settings.num_threads)[1]}, {settings.rounds} interleaved rounds, medians",
    }


def _plain(measured: Measured) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "title": measured.title,
        "batch_size": measured.batch_size,
        "rows": [to_json(row) for row in measured.rows],
        "not_run": [row._asdict() for row in measured.skipped],
    }


def _parser() -> ArgumentParser:
    parser = OneLineParser(prog="dropkey benchmark", description=DESCRIPTION)
    parser.add_argument("--model", type=str | None, help="A network, as for inspect: time its training step instead.")
    parser.add_argument(
        "--fit", action="store_true", help="Time a training run, with the options of dropkey fit; see --fit --help."
    )
    parser.add_argument("--batch_size", type=PositiveInt | None, help="Images per step, or B of every shape.")
    parser.add_argument("--image_size", type=PositiveInt | None, help="With --model: image height and width in pixels.")
    parser.add_argument("--model_args", type=dict[str, Any] | None, help="With --model: further constructor arguments.")
    parser.add_argument("--shapes", type=SHAPES, help="Other shapes, e.g. [[8, 12, 197, 64]]: batch, heads, tokens, head dim.")
    parser.add_argument("--ratio", type=float, default=0.1, help="Drop ratio of every layer.")
    parser.add_argument("--precision", type=Precision | None, help="Default: bf16-mixed on a GPU that has it, else 32-true.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:1.")
    parser.add_argument("--num_threads", type=PositiveInt | None, help="CPU threads; one by default on a CPU.")
    parser.add_argument("--rounds", type=PositiveInt | None, help="Samples of each figure.")
    parser.add_argument("--compile", type=bool | None, help="Also under torch.compile (default: true without --model).")
    parser.add_argument("--json", type=str | None, help="Also write everything, unrounded, into this file.")
    return parser
