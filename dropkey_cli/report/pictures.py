"""Matplotlib figures as a page wants them: inline SVG in the page's own text colour, the same at every drawing, and PNG."""

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

INK = "#24292f"
"""Of text and axes; in SVG it becomes the text colour of the page, so that dark pages show light text."""
COLORS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#eab308", "#ef4444")
"""Of lines; they can be told apart on white and on black."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: the page's reader has the letters that matplotlib's font lacks
    "svg.hashsalt": "dropkey",  # else ids are random
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $x$
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.grid": False,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
_UNNEEDED = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
_SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"')
_NAMES = re.compile(r'(\bid="|href="#|url\(#)')


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's settings for the pictures of a report; the caller's come back afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever a matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # measured as a box, shown as it is
        yield


def panel(width: float = 4.6, height: float = 2.9) -> tuple[Figure, Axes]:
    """A figure with one chart, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an element of a page.

    Args:
        figure: Drawn within `drawing`.
        name: A word; the page's other elements have other ones.
    """
    text = io.StringIO()
    no_date = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(text, format="svg", transparent=True, metadata=no_date)
    svg = text.getvalue()
    svg = _UNNEEDED.sub("", svg[svg.index("<svg") :])
    svg = _NAMES.sub(rf"\g<1>{name}-", _SIZE.sub(r"\1", svg, count=1))
    return svg.replace(INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)


def to_png(figure: Figure, path: Path) -> None:
    """The figure as a file, on white."""
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})


def data_address(image: Image.Image, *, photo: bool) -> str:
    """The address of a picture that is in the page itself.

    Args:
        image: RGB.
        photo: As JPEG; else as PNG, which keeps every pixel.
    """
    file = io.BytesIO()
    image.save(file, format="JPEG" if photo else "PNG", **({"quality": 85} if photo else {"optimize": True}))
    kind = "jpeg" if photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
