"""``report.html``: the pieces of a report as one page that needs no network, no script and no further file."""

from collections.abc import Iterable, Sequence
from html import escape

from dropkey_cli.report.attention import ROLLOUT, AttentionMaps
from dropkey_cli.report.charts import short
from dropkey_cli.report.scores import ClassScores, Confusion
from dropkey_cli.report.style import CSS

CLASSES = 30
"""So many classes the page lists, those with the lowest F1; the file lists all."""
PAIRS = 15
"""So many pairs of confused classes."""


def page(title: str, subtitle: str, parts: Iterable[str]) -> str:
    """The whole page.

    Args:
        title: Plain text.
        subtitle: Plain text.
        parts: HTML, as the functions below give it.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1>\n<p class="soft">{escape(subtitle)}</p></header>\n'
        + "\n".join(filter(None, parts))
        + "\n</body>\n</html>\n"
    )


def section(title: str, text: str, body: str, *, long: bool = False) -> str:
    """A part with a heading and a sentence that says how to read it; ``body`` is HTML, the others are plain text."""
    css = ' class="long"' if long else ""
    return f'<section{css}><h2>{escape(title)}</h2>\n<p class="soft">{escape(text)}</p>\n{body}</section>'


def tiles(numbers: Iterable[tuple[str, str]]) -> str:
    """The numbers to see first, as (name, value)."""
    cells = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in numbers)
    return f'<div class="tiles">{cells}</div>'


def facts(lines: Iterable[tuple[str, str]]) -> str:
    """What was run, as (name, text)."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in lines)
    return f'<table class="facts">{rows}</table>'


def class_table(scores: Sequence[ClassScores]) -> str:
    """The classes with the lowest F1 first; those without images last."""
    worst = sorted(scores, key=lambda row: (row.support == 0, row.f1, row.name))[:CLASSES]
    head = '<tr><th>class</th><th class="n">images</th>' + "".join(
        f'<th class="bar">{name}</th>' for name in ("precision", "recall", "F1")
    )
    rows = "".join(
        f'<tr><td>{escape(short(row.name, 60))}</td><td class="n">{row.support}</td>'
        + "".join(map(_bar, (row.precision, row.recall, row.f1)))
        + "</tr>"
        for row in worst
    )
    more = f'<p class="soft">{len(scores) - len(worst)} more in per_class.csv.</p>' if len(scores) > len(worst) else ""
    return f'<div class="scroll"><table>{head}</tr>{rows}</table></div>{more}'


def _bar(share: float) -> str:
    return f'<td class="bar">{share:.3f}<i style="--part:{100 * share:.1f}%"></i></td>'


def confusion_table(pairs: Sequence[Confusion], class_names: Sequence[str]) -> str:
    """The pairs of classes that were confused most often."""
    if not pairs:
        return "<p>No image was taken for another class.</p>"
    rows = "".join(
        f"<tr><td>{escape(short(class_names[pair.label], 40))}</td><td>{escape(short(class_names[pair.prediction], 40))}</td>"
        f'<td class="n">{pair.count}</td><td class="n">{pair.share:.0%}</td></tr>'
        for pair in pairs[:PAIRS]
    )
    head = '<tr><th>label</th><th>predicted</th><th class="n">images</th><th class="n">of the label</th></tr>'
    return f'<div class="scroll"><table>{head}{rows}</table></div>'


def contact_sheet(mistakes: Iterable[tuple[str, str, str, str, float, float]]) -> str:
    """Images that were taken for another class.

    Args:
        mistakes: Address of the picture ("" for none), path, label, prediction, the prediction's and the label's probability.
    """
    figures = "".join(
        f"<figure>{_picture(address, path)}<figcaption>predicted <b>{escape(prediction)}</b> {probability:.1%}<br>"
        f"label <b>{escape(label)}</b> {of_label:.1%}<br>{escape(path)}</figcaption></figure>"
        for address, path, label, prediction, probability, of_label in mistakes
    )
    return f'<div class="sheet">{figures}</div>'


def attention_table(
    maps: AttentionMaps, captions: Sequence[str], pictures: Sequence[str], overlays: dict[str, list[list[str]]]
) -> str:
    """One row per image: the image, and each map with and without DropKey.

    Args:
        maps: Which maps there are.
        captions: What to say of each image.
        pictures: Address of each image.
        overlays: By map, for every image, the addresses of the plain map and, where there is one, of that with DropKey.
    """
    columns = "".join(f'<th colspan="{len(rows[0])}">{escape(_map_name(name, maps))}</th>' for name, rows in overlays.items())
    kinds = ("all keys", "one mask") if maps.dropped else ("",)
    below = "".join(f"<th>{kind}</th>" for _ in overlays for kind in kinds)
    rows = "".join(
        f"<tr><td>{_picture(picture, caption)}{escape(caption)}</td>"
        + "".join(f"<td>{_picture(address, '')}</td>" for cells in overlays.values() for address in cells[place])
        + "</tr>"
        for place, (caption, picture) in enumerate(zip(captions, pictures, strict=True))
    )
    return f'<div class="scroll"><table class="maps"><tr><th></th>{columns}</tr><tr><th></th>{below}</tr>{rows}</table></div>'


def _map_name(name: str, maps: AttentionMaps) -> str:
    if name == ROLLOUT:
        return "all layers (rollout)"
    return f"{name} (drop ratio {maps.ratios[name]:.2g})" if name in maps.ratios else name


def _picture(address: str, text: str) -> str:
    small = ' class="small"' if address.startswith("data:image/png") else ""
    return f'<img{small} src="{address}" alt="{escape(text)}">' if address else ""
