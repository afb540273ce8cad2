"""Which cells an ablation has: named grids, a YAML file, or lists on the command line."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from dropkey_cli.ablation.cells import Cell, Remedy, What
from dropkey_cli.errors import InputError, did_you_mean
from dropkey_cli.method.settings import Schedule, Structure, check_choice, check_ratio

Block = Mapping[str, Any]
"""Values, or lists of values, of a cell's fields; it stands for all their combinations."""

SCHEDULES, STRUCTURES = get_args(Schedule), get_args(Structure)
BASELINE = Cell()

GRIDS: dict[str, list[Block]] = {
    "quick": [
        {"what": "attention_dropout", "ratio": [0.1, 0.3]},
        {"what": "dropkey", "ratio": [0.1, 0.3]},
    ],
    # What the paper varies: ratios of 0.05 and 0.1 on ImageNet and 0.3 on CIFAR, schedules, structures, remedies
    "paper": [
        {"what": "attention_dropout", "ratio": [0.05, 0.1, 0.3]},
        {"what": "dropkey", "schedule": ["decreasing", "constant", "increasing"], "ratio": [0.05, 0.1, 0.3]},
        {"what": "dropkey", "ratio": 0.3, "structure": "block", "window_size": [2, 3]},
        {"what": "dropkey", "ratio": 0.3, "structure": "cross"},
        {"what": "dropkey", "ratio": 0.3, "remedy": ["finish", "monte_carlo"]},
    ],
    "full": [
        {"what": "attention_dropout", "ratio": [0.1, 0.2, 0.3, 0.5]},
        {"what": "dropkey", "schedule": ["decreasing", "constant", "increasing"], "ratio": [0.1, 0.3, 0.5]},
        {"what": "dropkey", "schedule": ["decreasing", "increasing"], "match_mean": True, "ratio": 0.3},
        {"what": "dropkey", "structure": ["key", "block", "cross"], "ratio": 0.3},
        {"what": "dropkey", "schedule": ["decreasing", "constant"], "ratio": 0.3, "remedy": ["finish", "monte_carlo"]},
        {"what": "dropkey", "ratio": 0.5, "remedy": "monte_carlo"},
    ],
}

DEFAULTS = {"schedule": "decreasing", "match_mean": False, "structure": "element", "window_size": None, "remedy": "none"}
FIELDS = ("what", "ratio", *DEFAULTS)


def cells_of(blocks: Iterable[Block], *, source: str) -> list[Cell]:
    """The cells that blocks stand for, each once, in their order; the baseline, training without dropping, first.

    Args:
        blocks: The grid.
        source: Where it comes from, for messages.

    Raises:
        InputError: If a name or a value is unknown.
    """
    cells = [BASELINE]
    for block in blocks:
        if not isinstance(block, Mapping):
            raise InputError(f"{source} holds {block!r}; expected fields such as {{what: dropkey, ratio: [0.1, 0.3]}}")
        for name in block:
            if name not in FIELDS:
                near = did_you_mean(str(name), FIELDS)
                raise InputError(f"{source} names {name!r}; expected {', '.join(FIELDS)}{near}")
        lists = {name: value if isinstance(value, list) else [value] for name, value in block.items()}
        cells += [_cell(dict(zip(lists, values, strict=True)), source) for values in itertools.product(*lists.values())]
    return list(dict.fromkeys(cells))


def _cell(given: dict[str, Any], source: str) -> Cell:
    what = given.get("what", "dropkey")
    check_choice("what", what, get_args(What))
    if what == "none":
        return BASELINE
    if not isinstance(ratio := given.get("ratio"), int | float) or isinstance(ratio, bool) or not ratio:
        raise InputError(f"{source} has {what} with ratio {ratio!r}; expected shares above 0, e.g. ratio: [0.1, 0.3]")
    ratio = float(f"{ratio:g}")  # as names and the table have it: else the cell is not found again
    check_ratio("ratio", ratio)
    if what == "attention_dropout":
        return Cell(what, ratio)
    told = {**DEFAULTS, **given}
    for name, choices in (("schedule", SCHEDULES), ("structure", STRUCTURES), ("remedy", get_args(Remedy))):
        check_choice(name, told[name], choices)
    if not isinstance(told["match_mean"], bool):
        raise InputError(f"{source} has match_mean {told['match_mean']!r}; expected true or false")
    window = told["window_size"]
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise InputError(f"{source} has window_size {window!r}; expected a number of tokens, 1 or more")
    return Cell(
        "dropkey",
        ratio,
        told["schedule"],
        told["match_mean"] and told["schedule"] != "constant",  # its mean is the ratio anyway
        told["structure"],
        window if told["structure"] == "block" else None,
        told["remedy"],
    )
