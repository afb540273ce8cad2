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
    table = Table(title=ratio_summary(plan), title_justify="left")
    for column in ("layer", "class", "attends by", "queries × keys", "heads", "drop ratio"):
        table.add_column(column, overflow="fold")
    for layer in plan.layers:
        size = f"{layer.queries} × {layer.keys}"
        cells = (layer.name, layer.class_name, layer.function, size, str(layer.heads), f"{layer.ratio:.4g}")
        table.add_row(*cells)
    for left in plan.left_alone:
        table.add_row(left.name, left.class_name, left.why, "", "", "–")
    return table


def ratio_summary(plan: DropKeyPlan) -> str:
    """The plan in one line: layers, first, last and mean ratio, schedule, structure."""
    ratios = [layer.ratio for layer in plan.layers]
    schedule = plan.settings.schedule if isinstance(plan.settings.schedule, str) else "listed"
    return (
        f"DropKey in {len(ratios)} attention layers: ratio {ratios[0]:.4g} first, {ratios[-1]:.4g} last, "
        f"{sum(ratios) / len(ratios):.4g} mean ({schedule}, {plan.settings.structure})"
    )
