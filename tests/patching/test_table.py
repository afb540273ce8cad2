import sys
from typing import Any

import pytest
import timm
import torch
from torch import nn

from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.patching.table import layer_table, print_table


def plan(**settings: Any) -> DropKeyPlan:  # noqa: ANN401 - any setting
    with torch.device("meta"):
        model: nn.Module = timm.create_model("test_vit", depth=3)
    return apply_dropkey(model, DropKeySettings(**settings))


def cells(table: object) -> list[list[str]]:
    columns = [list(column.cells) for column in table.columns]  # type: ignore[attr-defined]
    return [list(row) for row in zip(*columns, strict=True)]


def test_one_row_per_layer_in_order_of_execution() -> None:
    table = layer_table(plan(ratio=0.4))
    assert [str(column.header) for column in table.columns] == [
        "layer",
        "class",
        "attends by",
        "queries × keys",
        "heads",
        "drop ratio",
    ]
    attention = "timm.layers.attention.Attention"
    assert cells(table) == [
        [f"blocks.{block}.attn", attention, "sdpa", "101 × 101", "2", ratio] for block, ratio in enumerate(["0.4", "0.2", "0"])
    ]


def test_layers_left_alone_follow_with_the_reason() -> None:
    rows = cells(layer_table(plan(exclude=["blocks.1.*"])))
    assert [row[0] for row in rows] == ["blocks.0.attn", "blocks.2.attn", "blocks.1.attn"]
    assert rows[2][2] != ""
    assert rows[2][3:] == ["", "", "–"]


@pytest.mark.parametrize(
    ("settings", "summary"),
    [
        ({"ratio": 0.4}, "ratio 0.4 first, 0 last, 0.2 mean (decreasing, element)"),
        ({"ratio": 0.4, "schedule": "increasing"}, "ratio 0 first, 0.4 last, 0.2 mean (increasing, element)"),
        ({"ratio": 0.1, "schedule": "constant", "structure": "key"}, "ratio 0.1 first, 0.1 last, 0.1 mean (constant, key)"),
        ({"schedule": [0.3, 0.0, 0.1]}, "ratio 0.3 first, 0.1 last, 0.1333 mean (listed, element)"),
    ],
)
def test_summary_says_first_last_and_mean(settings: dict[str, Any], summary: str) -> None:
    assert layer_table(plan(**settings)).title == f"DropKey in 3 attention layers: {summary}"


def test_summary_follows_the_plan() -> None:
    changed = plan()
    changed.set_ratios([0.5, 0.25, 0.0])
    assert "ratio 0.5 first, 0 last, 0.25 mean" in str(layer_table(changed).title)


def test_a_pipe_is_wide_enough_for_the_longest_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert not sys.stdout.isatty()
    print_table(plan())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("DropKey in 3 attention layers")
    assert sum("timm.layers.attention.Attention" in line for line in lines) == 3
    assert "\x1b" not in "".join(lines)
