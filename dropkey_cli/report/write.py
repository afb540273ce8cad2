"""Writes the files of a report from what a run has left: predictions, metrics, drop ratios, and a network to look into."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.files import whole_file, write_csv
from dropkey_cli.report import page
from dropkey_cli.report.attention import AttentionMaps
from dropkey_cli.report.charts import DRAWN, calibration_figure, confusion_figure, short
from dropkey_cli.report.curves import curve_figures, read_curves
from dropkey_cli.report.drop_ratios import drop_ratio_figure
from dropkey_cli.report.images import overlay, thumbnail
from dropkey_cli.report.numbers import read_numbers, write_numbers
from dropkey_cli.report.pictures import drawing, to_png, to_svg
from dropkey_cli.report.predictions import Predictions, read_predictions
from dropkey_cli.report.scores import (
    calibration,
    class_scores,
    confusion_matrix,
    confusions,
    macro_scores,
    read_scores,
    worst_mistakes,
    write_scores,
)

MISTAKES = 24
"""Images on the contact sheet."""
MAPPED = 4
"""Images with attention maps."""
MATRIX = 1000
"""More classes than this have no confusion.csv: their matrix would be larger than anyone reads."""
CLASS_TEXT = "The lowest F1 first. Precision: how many of those called so are; recall: how many of the class are found."


@dataclass
class Sources:
    """What a report is made of.

    Attributes:
        folder: Where it is written, and where ``predictions.csv``, or for any number of classes per image ``per_class.csv``,
            and ``metrics.json`` lie if there are any.
        stage: val or test, the first word of the metrics' names.
        title: The run's name.
        subtitle: What the numbers are of.
        class_names: Name of each of the K classes.
        facts: What was run, as (name, text).
        metrics: The run's ``metrics.csv``; None for none.
        drop_ratios: The run's ``drop_ratio.csv``; None for none.
        num_images: Images in the data set.
        image: Gives the 8-bit image (C, height, width) at a position in the data set, as the network sees it; None if that
            is not known.
        attention: Gives the maps of such images (B, C, height, width), or raises InputError with the reason why not.
    """

    folder: Path
    stage: str
    title: str
    subtitle: str
    class_names: list[str]
    facts: list[tuple[str, str]] = field(default_factory=list)
    metrics: Path | None = None
    drop_ratios: Path | None = None
    num_images: int = 0
    image: Callable[[int], Tensor] | None = None
    attention: Callable[[Tensor], AttentionMaps] | None = None


def write_report(sources: Sources) -> Path:
    """Write ``report.html`` and the files beside it; its path."""
    numbers = read_numbers(sources.folder)
    found = sources.folder / "predictions.csv"
    predictions = read_predictions(found) if found.is_file() else None
    parts = [*_curves(sources, numbers)]
    if predictions is not None and predictions.index:
        parts += _answers(sources, predictions, numbers)
    elif (several := sources.folder / "per_class.csv").is_file():  # any number of classes per image
        text = f"{CLASS_TEXT} A class is said where its probability is above 0.5."
        parts.append(page.section("Classes", text, page.class_table(read_scores(several)), long=True))
    parts += [*_dropkey(sources, predictions), page.section("What was run", "", page.facts(sources.facts))]
    write_numbers(sources.folder, numbers)
    path = sources.folder / "report.html"
    with whole_file(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(page.page(sources.title, sources.subtitle, [page.tiles(_headline(numbers, sources.stage)), *parts]))
    return path


def _headline(numbers: dict[str, Any], stage: str) -> list[tuple[str, str]]:
    shown = {
        "balanced_acc": "balanced accuracy", "acc1": "accuracy", "acc5": "top-5 accuracy", "map": "mean average precision",
        "loss": "loss", "macro_f1": "macro F1", "f1_macro": "macro F1", "f1_micro": "micro F1",
        "exact_match": "all classes right", "hamming_loss": "Hamming loss", "calibration_error": "calibration error",
        "images": "images",
    }  # fmt: skip
    values = [(text, numbers.get(f"{stage}/{name}")) for name, text in shown.items()]
    lines = [(name, str(value) if isinstance(value, int) else f"{value:.4f}") for name, value in values if value is not None]
    return [*lines, ("best epoch", str(numbers["epoch"] + 1))] if "epoch" in numbers else lines


def _curves(sources: Sources, numbers: dict[str, Any]) -> Iterator[str]:
    if sources.metrics is None or not sources.metrics.is_file():
        return
    with drawing():
        figures = curve_figures(read_curves(sources.metrics), numbers.get("step"))
        charts = [to_svg(figure, f"curve{place}") for place, (_, figure) in enumerate(figures)]
    if charts:
        text = "The dotted line is the epoch of best.ckpt, which the rest of this page is about."
        body = f'<div class="charts">{"".join(f"<div>{chart}</div>" for chart in charts)}</div>'
        yield page.section("Training", text if "step" in numbers else "", body)


def _answers(sources: Sources, predictions: Predictions, numbers: dict[str, Any]) -> Iterator[str]:
    """The sections about the predictions; their numbers are added."""
    names, folder = sources.class_names, sources.folder
    scores, calibrated = class_scores(predictions, names), calibration(predictions)
    write_scores(folder / "per_class.csv", scores)
    further = {**macro_scores(scores), "calibration_error": calibrated.error, "images": len(predictions.index)}
    numbers |= {f"{sources.stage}/{name}": value for name, value in further.items()}
    yield page.section("Classes", CLASS_TEXT, page.class_table(scores), long=True)
    yield _confusion(sources, predictions)
    yield _mistakes(sources, predictions)
    with drawing():
        figure = calibration_figure(calibrated)
        to_png(figure, folder / "calibration.png")
        chart = to_svg(figure, "calibration")
    text = (
        "Bars below the dotted line: the network is surer than it is right. The expected calibration error, the mean distance "
        f"over all images, is {calibrated.error:.4f}."
    )
    yield page.section("Calibration", text, f'<div class="one">{chart}</div>')


def _confusion(sources: Sources, predictions: Predictions) -> str:
    names, folder = sources.class_names, sources.folder
    pairs = page.confusion_table(confusions(predictions), names)
    text = "Which classes are taken for which, most images first."
    if len(names) > MATRIX:
        return page.section("Confusions", text, pairs)
    matrix = confusion_matrix(predictions, len(names))
    rows = ([name, *counts] for name, counts in zip(names, matrix.tolist(), strict=True))
    write_csv(folder / "confusion.csv", ["label \\ predicted", *names], rows)
    with drawing():
        figure = confusion_figure(matrix, names)
        to_png(figure, folder / "confusion.png")
        chart = to_svg(figure, "confusion") if len(names) <= DRAWN else ""
    if len(names) > DRAWN:
        return page.section("Confusions", text, pairs)
    both = f'<div class="side"><div>{chart}</div>{pairs}</div>'
    return page.section("Confusions", f"{text} Blue: share of the label's images.", both)


def _mistakes(sources: Sources, predictions: Predictions) -> str:
    worst = worst_mistakes(predictions, MISTAKES)
    if not worst:
        return ""
    names = sources.class_names
    rows = [
        (
            thumbnail(sources.image(predictions.index[place])) if sources.image else "",
            predictions.path[place],
            short(names[predictions.label[place]], 40),
            short(names[predictions.prediction[place]], 40),
            predictions.probability[place],
            predictions.label_probability[place],
        )
        for place in worst
    ]
    wrong = len(predictions.correct) - sum(predictions.correct)
    text = (
        f"{len(rows)} of {wrong} wrong answers, the surest first, as the network sees the images. Wrong labels are found here, "
        "too."
    )
    return page.section("The most confident mistakes", text, page.contact_sheet(rows), long=True)


def _dropkey(sources: Sources, predictions: Predictions | None) -> Iterator[str]:
    """The drop ratios and the attention maps."""
    if sources.drop_ratios is not None and sources.drop_ratios.is_file():
        with drawing():
            figure = drop_ratio_figure(sources.drop_ratios)
            chart = "" if figure is None else to_svg(figure, "drop_ratio")
        text = "Share of keys that every layer dropped in training: as asked for, and as counted in the masks that were used."
        yield page.section("Drop ratios", text, f'<div class="wide">{chart}</div>') if chart else ""
    if sources.image is not None and sources.attention is not None and sources.num_images:
        yield _attention(sources, sources.image, sources.attention, predictions)


def _attention(
    sources: Sources,
    image: Callable[[int], Tensor],
    attention: Callable[[Tensor], AttentionMaps],
    predictions: Predictions | None,
) -> str:
    positions = _spread(predictions.index if predictions is not None else range(sources.num_images), MAPPED)
    images = [image(index) for index in positions]
    try:
        maps = attention(torch.stack(images))
    except InputError as reason:
        return page.section("Attention", f"Left out: {reason}", "")
    overlays: dict[str, list[list[str]]] = {}
    for name, plain in maps.plain.items():
        both = [plain, *([maps.dropped[name]] if name in maps.dropped else [])]
        largest = torch.stack(both).amax((0, 2, 3)).tolist()  # of each image: one scale for both
        overlays[name] = [
            [overlay(image, found[place], largest=largest[place]) for found in both] for place, image in enumerate(images)
        ]
    captions = [_caption(index, sources.class_names, predictions) for index in positions]
    text = (
        f"Where the trained network looks ({maps.query}, mean over heads): the first and the last layer on a grid, and all "
        "layers together."
    )
    dropped = " With all keys, as in prediction, and with those of one drawn mask missing, as in training."
    table = page.attention_table(maps, captions, [thumbnail(image) for image in images], overlays)
    return page.section("Attention", text + (dropped if maps.dropped else ""), table)


def _spread(positions: Sequence[int], count: int) -> list[int]:
    """So many of them, evenly spread."""
    count = min(count, len(positions))
    return [positions[(2 * place + 1) * len(positions) // (2 * count)] for place in range(count)]


def _caption(index: int, class_names: list[str], predictions: Predictions | None) -> str:
    if predictions is None or index not in predictions.index:
        return ""
    place = predictions.index.index(index)
    label, prediction = (short(class_names[number], 20) for number in (predictions.label[place], predictions.prediction[place]))
    return label if label == prediction else f"{label}, taken for {prediction}"
