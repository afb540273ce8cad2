"""A plan as a table for people."""

from rich.console import Console
from rich.table import Table

from dropkey_cli.patching.apply import DropKeyPlan


def print_table(plan: DropKeyPlan) -> None:
    """Print `layer_table`; in a file or pipe, as wide as it needs to be."""
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(layer_table(plan))


def layer_table(plan: DropKeyPlan) -> Table:
    """One row per attention layer in order of first execution; then what was left alone and why."""
    table = Table(title=str(plan), title_justify="left")
    for column in ("layer", "class", "attends by", "queries × keys", "heads", "drop ratio"):
        table.add_column(column, overflow="fold")
    for layer in plan.layers:
        size = f"{layer.queries} × {layer.keys}"
        cells = (layer.name, layer.class_name, layer.function, size, str(layer.heads), f"{layer.ratio:.4g}")
        table.add_row(*cells)
    for left in plan.left_alone:
        table.add_row(left.name, left.class_name, left.why, "", "", "–")
    return table
