"""`apply_dropkey`: DropKey in every attention layer of a model that runs over keys."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import KeyLayout
from dropkey_cli.method.schedule import layer_ratios
from dropkey_cli.method.settings import DropKeySettings, check_ratio
from dropkey_cli.patching.discovery import image_inputs, record_attention
from dropkey_cli.patching.grid import key_layouts
from dropkey_cli.patching.interception import KeyDropping, intercepted_class, is_outermost, wrapped_class
from dropkey_cli.patching.layer import LayerDropKey
from dropkey_cli.patching.selection import AttentionLayer, Selection, select_layers


@dataclass(frozen=True)
class PlannedLayer(AttentionLayer):
    """An attention layer that takes DropKey, with its drop ratio and how its keys lie on the token grid, if they do."""

    ratio: float
    layout: KeyLayout | None


Reduce = Callable[[PlannedLayer, Tensor], Any]
"""Makes of a layer's attention weights what is kept of them."""


class DropKeyPlan:
    """What `apply_dropkey` did to a model, and the handle to change or undo it."""

    def __init__(
        self, model: nn.Module, selection: Selection, settings: DropKeySettings, layouts: list[KeyLayout | None]
    ) -> None:
        self.settings = settings
        self.left_alone = selection.left_alone
        self._selected = selection.selected
        self._modules = [model.get_submodule(layer.name) for layer in selection.selected]
        self._ratios = layer_ratios(settings, len(self._modules))
        self._layouts = layouts
        for module, layer, ratio, layout in zip(self._modules, self._selected, self._ratios, layouts, strict=True):
            shared = layer.heads if layer.rule.talking_heads and settings.share_talking_heads else layer.rule.shared_heads
            state = LayerDropKey(ratio, layer.rule, structure=settings.structure, layout=layout, shared_heads=shared)
            _intercept(module, state, _device(module, model))

    def __str__(self) -> str:
        """The plan in one line: layers, first, last and mean ratio (since "the" ratio is ambiguous), schedule, structure."""
        schedule = self.settings.schedule if isinstance(self.settings.schedule, str) else "listed"
        first, last, mean = self._ratios[0], self._ratios[-1], sum(self._ratios) / len(self._ratios)
        return (
            f"DropKey in {len(self._ratios)} attention layers: ratio {first:.4g} first, {last:.4g} last, {mean:.4g} mean "
            f"({schedule}, {self.settings.structure})"
        )

    @property
    def layers(self) -> list[PlannedLayer]:
        """The layers with DropKey in order of first execution."""
        found = zip(self._selected, self._ratios, self._layouts, strict=True)
        return [PlannedLayer(**vars(layer), ratio=ratio, layout=layout) for layer, ratio, layout in found]

    @property
    def states(self) -> list[LayerDropKey]:
        """The layers' live state, in the order of `layers`: what monitors read."""
        return [module.dropkey for module in self._modules]  # type: ignore[misc]  # set by _intercept

    @property
    def enabled(self) -> bool:
        """Whether keys are dropped in training; settable (False: the unpatched computation)."""
        return all(state.enabled for state in self.states)

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        for state in self.states:
            state.enabled = enabled

    def set_ratios(self, ratios: Sequence[float]) -> None:
        """Give every layer another ratio, in the order of `layers`, without recompiling.

        Raises:
            InputError: If their number is not that of the layers, or one lies outside [0, 1).
        """
        if len(ratios) != len(self._modules):
            raise InputError(f"{len(ratios)} ratios given for {len(self._modules)} layers: give one per layer")
        for position, ratio in enumerate(ratios):
            check_ratio(f"ratios[{position}]", ratio)
        self._ratios = list(ratios)
        for state, ratio in zip(self.states, ratios, strict=True):
            state.set_ratio(ratio)

    @contextlib.contextmanager
    def sampling(self, images: Tensor | None = None) -> Iterator[None]:
        """Within this context keys are dropped in eval mode too: Monte Carlo over masks (one of the paper's two remedies).

        Args:
            images: Numbers of the images in the batch, int64 (B,), such as their positions in the data set: each then has masks
                of its own that depend on torch's seed and its number alone, whatever batch it is in. By default masks
                depend on the place in the batch, as in training.
        """
        before = [(state.sampling, state.images) for state in self.states]
        for state in self.states:
            state.sampling, state.images = True, images
        try:
            with _through_the_modules():
                yield
        finally:
            for state, (sampling, numbers) in zip(self.states, before, strict=True):
                state.sampling, state.images = sampling, numbers

    @contextlib.contextmanager
    def recording(self, reduce: Reduce | None = None) -> Iterator[dict[str, list[Any]]]:
        """Within this context, keep the attention weights of every layer: after the softmax, without what DropKey drops.

        Outputs and masks stay what they are; compiled models run uncompiled meanwhile.

        Args:
            reduce: Called with a layer and the weights of each of its calls, as the layer's class computes them: (B, H, N, S)
                for most, with windows among the B. What it returns is kept; by default a copy of the weights.

        Returns:
            What was kept, by the layer's name, one entry per call. It fills as the model runs.
        """
        kept: dict[str, list[Any]] = {layer.name: [] for layer in self.layers}
        reduce = reduce or (lambda _, weights: weights.clone())
        before = [state.observe for state in self.states]
        for layer, state in zip(self.layers, self.states, strict=True):
            state.observe = partial(_keep, kept[layer.name], partial(reduce, layer))
        try:
            with _through_the_modules(), torch.compiler.set_stance("force_eager"):
                yield kept
        finally:
            for state, observe in zip(self.states, before, strict=True):
                state.observe = observe

    def remove(self) -> None:
        """Give every module its original class back. The plan is of no use afterwards.

        Raises:
            InputError: If another tool has put a class of its own over one of them since, as FSDP2's fully_shard does.
        """
        for module in self._modules:
            if not is_outermost(module):
                raise InputError(
                    f"{type(module).__name__} lies over the class with DropKey and would be lost with it: call plan.remove() "
                    "before the tool that put it there (fully_shard), or switch DropKey off: plan.enabled = False"
                )
        for module in self._modules:
            module.__class__ = wrapped_class(type(module))
            del module.dropkey
        self._modules, self._selected, self._ratios, self._layouts = [], [], [], []


@contextlib.contextmanager
def _through_the_modules() -> Iterator[None]:
    """Keep nn.TransformerEncoder from going around its attention modules, as it does in eval."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _keep(kept: list[Any], reduce: Callable[[Tensor], Any], weights: Tensor) -> None:
    kept.append(reduce(weights))


def apply_dropkey(
    model: nn.Module, settings: DropKeySettings | None = None, *, example_inputs: tuple[Any, ...] | None = None
) -> DropKeyPlan:
    """Patch DropKey into every attention layer of ``model`` that runs over keys, in place.

    No parameter, buffer or state_dict key changes. In eval mode, and where a ratio is 0, the model computes bitwise what it
    computed before. Apply it before DDP, FSDP or `torch.compile`.

    Args:
        model: Any module, on any device.
        settings: Ratio, schedule, structure; the paper's decreasing schedule from 0.3 by default.
        example_inputs: Positional arguments of the model's forward, batch 2; by default two images of the model's own size.

    Returns:
        The plan: which layers drop how much, what was left alone, and the switches.

    Raises:
        InputError: If the model has no layer that attends over keys, has one of an unknown class, or has DropKey already.
    """
    settings = settings or DropKeySettings()
    if any(isinstance(module, KeyDropping) for module in model.modules()):
        raise InputError(
            f"{type(model).__name__} has DropKey already: call plan.remove() before applying it again, or, for a copy, "
            "which has no plan of its own, copy the model before it gets DropKey"
        )
    inputs = image_inputs(model) if example_inputs is None else example_inputs
    selection = select_layers(record_attention(model, inputs), settings, model_name=type(model).__name__)
    return DropKeyPlan(model, selection, settings, key_layouts(selection.selected, model, inputs, settings))


def _intercept(module: nn.Module, state: LayerDropKey, device: torch.device) -> None:
    if "forward" in vars(module):
        raise InputError(
            f"a {type(module).__name__} has a forward of its own, set on the instance, which hides its class: apply DropKey "
            "before other tools wrap the model"
        )
    state.to(device)
    module.__class__ = intercepted_class(type(module))
    module.dropkey = state  # type: ignore[assignment]  # a plain attribute, neither parameter nor module


def _device(*modules: nn.Module) -> torch.device:
    """Where the first parameter or buffer of the first module that has one lies."""
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
