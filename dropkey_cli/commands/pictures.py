"""Pictures of masks: which keys the queries of a layer would lose."""

from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import dropkey_mask
from dropkey_cli.patching.apply import DropKeyPlan, PlannedLayer

NUM_QUERIES = 4


def draw_masks(plan: DropKeyPlan, path: Path, *, seed: int = 0) -> list[str]:
    """Draw masks of the first, a middle and the last layer that drops keys, one row each; dropped keys are dark.

    A row begins with the mask of one head, all queries × keys. Where the keys lie on the token grid, the keys of some
    queries follow as they lie there, without prefix tokens.

    Args:
        plan: What `apply_dropkey` returned.
        path: Picture file to write; its ending tells the format.
        seed: Seed of the masks.

    Returns:
        Names of the layers drawn.

    Raises:
        InputError: If no layer drops keys, or the file cannot be written.
    """
    if not path.suffix:
        raise InputError(f"{str(path)!r} has no ending that tells the format: give a picture file, e.g. masks.png")
    dropping = [layer for layer in plan.layers if layer.ratio > 0]
    if not dropping:
        raise InputError("all layers have ratio 0, there is no mask to draw: give --dropkey.ratio, e.g. 0.3")
    layers = [dropping[index] for index in sorted({0, len(dropping) // 2, len(dropping) - 1})]
    figure = Figure(figsize=(2.4 * (1 + NUM_QUERIES), 2.7 * len(layers)), layout="constrained")
    figure.suptitle(str(plan))
    rows = figure.subplots(len(layers), 1 + NUM_QUERIES, squeeze=False)
    for number, layer in enumerate(layers):
        _draw_layer(list(rows[number]), layer, plan, seed + number)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # no such folder, no such format
        raise InputError(f"{str(path)!r} cannot be written ({error}): give a picture file, e.g. masks.png") from error
    return [layer.name for layer in layers]


def _draw_layer(axes: list[Axes], layer: PlannedLayer, plan: DropKeyPlan, seed: int) -> None:
    shape = (1, 1, layer.queries, layer.keys)
    mask = dropkey_mask(seed, shape, layer.ratio, plan.settings.structure, layer.layout)[0, 0]  # (N, S)
    _show(axes[0], mask, f"{layer.name}, ratio {layer.ratio:.3g}\n{layer.queries} queries × {layer.keys} keys")
    for query, axis in enumerate(axes[1:]):
        if layer.layout is None or query >= layer.queries:
            axis.set_visible(False)
            continue
        height, width = layer.layout.height, layer.layout.width
        keys = mask[query, layer.layout.prefix_tokens :].view(height, width)
        _show(axis, keys, f"query {query}: {height} × {width} keys")


def _show(axis: Axes, mask: Tensor, title: str) -> None:
    aspect: Literal["equal", "auto"] = "equal" if mask.shape[0] > 1 else "auto"  # one query would be a hair line
    axis.imshow(mask.numpy(), cmap="Greys", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
