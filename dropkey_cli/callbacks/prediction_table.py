"""The rows of a batch of predictions, column by column, and those of several processes in input order."""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise, zip_longest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers = npt.NDArray[np.float32]
Table = dict[str, list[str] | Numbers]
"""One entry per row in each column, text or number; the missing are empty or NaN."""
NO_NUMBER = "the network's output is NaN"


class Choice(NamedTuple):
    """What of a prediction is written.

    Args:
        top_k: How many classes a row names.
        threshold: Those with a lower probability are left empty.
        all_probabilities: Add the probability of every class.
    """

    top_k: int
    threshold: float = 0.0
    all_probabilities: bool = False


def prediction_table(
    paths: Sequence[str], errors: Sequence[str], outputs: dict[str, Tensor], class_names: Sequence[str], choice: Choice
) -> Table:
    """One row per image, its classes by falling probability; padding has none.

    Args:
        paths: File of each of the B images; empty for padding.
        errors: Why an image could not be read; empty for the others.
        outputs: ``probability`` (B, K), in [0, 1]; with Monte Carlo ``std`` (B, K); ``features`` (B, C) if they are wanted.
        class_names: Name of each of the K classes.
        choice: What is written of them.
    """
    kept = [place for place, path in enumerate(paths) if path]
    best = outputs["probability"].topk(choice.top_k)
    values, classes = _numbers(best.values)[kept], best.indices.cpu().numpy()[kept]
    failed = [errors[place] or (NO_NUMBER if np.isnan(value) else "") for place, value in zip(kept, values[:, 0], strict=True)]
    unknown = np.array([bool(error) for error in failed], dtype=bool)[:, None]
    below = unknown | (values < choice.threshold)
    values[below] = np.nan
    names = [
        ["" if missing else class_names[index] for index, missing in zip(*column, strict=True)]
        for column in zip(classes.T, below.T, strict=True)
    ]
    table: Table = {
        "path": [paths[place] for place in kept],
        "prediction": names[0],
        "probability": values[:, 0],
        "error": failed,
    }
    for rank in range(1, choice.top_k):
        table |= {f"top{rank + 1}_class": names[rank], f"top{rank + 1}_probability": values[:, rank]}
    if "std" in outputs:
        spread = _numbers(outputs["std"].gather(1, best.indices))[kept]
        spread[below] = np.nan
        table |= {"std" if rank == 0 else f"top{rank + 1}_std": spread[:, rank] for rank in range(choice.top_k)}
    for name, labels in _wide(outputs, class_names, choice).items():
        wide = _numbers(outputs[name])[kept]
        wide[np.broadcast_to(unknown, wide.shape)] = np.nan
        table |= dict(zip(labels, wide.T, strict=True))
    return table


def _wide(outputs: dict[str, Tensor], class_names: Sequence[str], choice: Choice) -> dict[str, list[str]]:
    """The outputs that are written as a whole, with the names of their columns; these are no other column's."""
    per_class = [name for name in ("probability", "std") if choice.all_probabilities and name in outputs]
    labels: dict[str, list[str]] = {name: [f"{name}_{class_name}" for class_name in class_names] for name in per_class}
    if "features" in outputs:
        labels["features"] = [f"feature_{number}" for number in range(outputs["features"].shape[1])]
    return labels


def _numbers(values: Tensor) -> Numbers:
    numbers: Numbers = values.to(torch.float32).cpu().numpy()
    return numbers


def interleave(tables: Sequence[Table]) -> Table:
    """The rows of all processes in input order: as `EvalSampler` dealt them out.

    Args:
        tables: One per process, with the same columns.
    """
    if len(tables) == 1:
        return tables[0]
    return {name: _interleaved([table[name] for table in tables]) for name in tables[0]}


def _interleaved(columns: list[list[str] | Numbers]) -> list[str] | Numbers:
    starts = np.cumsum([0, *map(len, columns)])
    places = zip_longest(*(range(start, end) for start, end in pairwise(starts)))
    order = [place for place in chain.from_iterable(places) if place is not None]
    if isinstance(columns[0], list):
        texts = list(chain.from_iterable(columns))
        return [texts[place] for place in order]
    return np.concatenate(columns)[order]


def rows(table: Table) -> Iterator[tuple[str | float | None, ...]]:
    """Row by row, the missing as None; a number is the shortest one that float32 turns into the column's."""
    return zip(*map(_cells, table.values()), strict=True)


def _cells(column: list[str] | Numbers) -> list[str | float | None]:
    if isinstance(column, list):
        return [text or None for text in column]
    return [None if text == "nan" else float(text) for text in column.astype(str).tolist()]
