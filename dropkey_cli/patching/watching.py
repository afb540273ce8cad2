"""Makes a network without DropKey show its attention weights, for as long as someone looks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan
from dropkey_cli.patching.discovery import record_attention
from dropkey_cli.patching.selection import select_layers

_NO_KEYS = DropKeySettings(ratio=0.0, schedule="constant")


class WatchedAttention:
    """The attention layers of a network without DropKey: found once, patched only within `plan`.

    Args:
        model: Any module; it stays as it is.
        example_inputs: Positional arguments of its forward, batch 2 or more, on any device.

    Raises:
        InputError: As `apply_dropkey` raises it.
    """

    def __init__(self, model: nn.Module, example_inputs: tuple[Any, ...]) -> None:
        self._model = model
        self._selection = select_layers(record_attention(model, example_inputs), _NO_KEYS, model_name=type(model).__name__)

    @contextmanager
    def plan(self) -> Iterator[DropKeyPlan]:
        """Within this context, a plan that drops no keys: outputs stay bitwise what they are. Afterwards nothing is left."""
        plan = DropKeyPlan(self._model, self._selection, _NO_KEYS, [None] * len(self._selection.selected))
        try:
            yield plan
        finally:
            plan.remove()
