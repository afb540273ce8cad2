"""Where a model attends: one recorded forward of a copy without weights, on the meta device."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropkey_cli.errors import InputError
from dropkey_cli.method.layer_mask import logits_shape

Function = Literal["sdpa", "softmax", "multi_head_attention_forward"]

SDPA: frozenset[Callable[..., Any]] = frozenset({F.scaled_dot_product_attention})
SOFTMAX: frozenset[Callable[..., Any]] = frozenset({torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax})


@dataclass(frozen=True)
class AttentionCall:
    """One call of a softmax or attention function during the recorded forward.

    Args:
        layer: Name of the innermost module around the call ("" is the model itself); an ``nn.Softmax`` counts as its parent.
        cls: That module's class.
        function: What it called.
        logits_shape: Shape of the attention logits; queries and keys are the last two axes.
        dim: Axis the softmax runs over, counted from the end: -1 for keys.
    """

    layer: str
    cls: type[nn.Module]
    function: Function
    logits_shape: tuple[int, ...]
    dim: int = -1

    @property
    def over_keys(self) -> bool:
        """Whether this can be a softmax over keys: along the last axis of logits with samples, queries and keys."""
        return self.dim == -1 and len(self.logits_shape) >= 3


def record_attention(model: nn.Module, example_inputs: tuple[Any, ...]) -> list[AttentionCall]:
    """Every attention call of one forward in training mode, in order. Neither weights are read nor state is changed.

    Args:
        model: Any module; it is copied to the meta device first.
        example_inputs: Positional arguments of its forward, on any device; batch 2 or more.

    Raises:
        InputError: If the forward fails on these inputs.
    """
    ghost = meta_copy(model)
    ghost.train()  # some of timm's return None
    recorder = _Recorder()
    for name, module in ghost.named_modules():
        module._forward_pre_hooks.clear()  # whoever registered them does not expect tensors without values
        module._forward_hooks.clear()
        if not isinstance(module, nn.Softmax):
            module.register_forward_pre_hook(recorder.entering(name, type(module)))
            module.register_forward_hook(recorder.leaving, always_call=True)
    inputs = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to("meta"), example_inputs)
    try:
        # A forward in training mode may draw random numbers: the caller's generator keeps its state.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"), recorder:
            ghost(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in torch.utils._pytree.tree_leaves(inputs) if isinstance(t, Tensor))
        raise InputError(
            f"{type(model).__name__} could not be run once on inputs of shape {shapes} to find its attention layers "
            f"({type(error).__name__}: {error}); give inputs that fit, and that it need not read: "
            "apply_dropkey(model, settings, example_inputs=(images,))"
        ) from error
    return recorder.calls


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy of ``model`` on the meta device, without allocating its weights a second time.

    Raises:
        InputError: If it cannot be copied, as under FSDP.
    """
    ghosts: dict[int, Any] = {}
    for tensor in _tensors([vars(module) for module in model.modules()]):
        ghost = tensor.detach().to("meta")
        ghosts[id(tensor)] = nn.Parameter(ghost, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else ghost
    try:
        return copy.deepcopy(model, ghosts).to("meta")
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} could not be copied to find its attention layers ({type(error).__name__}: {error}); apply "
            "DropKey before other tools (FSDP, a parametrization) change the model"
        ) from error


def image_inputs(model: nn.Module) -> tuple[Tensor]:
    """Two images of the size an image model says it takes (timm's ``patch_embed.img_size`` or ``pretrained_cfg``).

    Raises:
        InputError: If the model says nothing of that kind.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, *size = config.get("input_size") or (3, None, None)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or size
    size = [size, size] if isinstance(size, int) else size
    if None in size:
        raise InputError(
            f"{type(model).__name__} does not say which images it takes: give its forward's arguments, "
            "e.g. apply_dropkey(model, settings, example_inputs=(images,))"
        )
    return (torch.empty(2, getattr(model, "in_chans", None) or channels, *size, device="meta"),)


class _Recorder(TorchFunctionMode):
    """Notes every attention call and the module that makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[AttentionCall] = []
        self._stack: list[tuple[str, type[nn.Module]]] = []

    def entering(self, name: str, cls: type[nn.Module]) -> Callable[[nn.Module, Any], None]:
        return lambda _module, _args: self._stack.append((name, cls))

    def leaving(self, _module: nn.Module, _args: object, _output: object) -> None:
        self._stack.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        kwargs = kwargs or {}
        if func in SDPA:
            self._note("sdpa", _sdpa_logits_shape(*args, **kwargs))
        elif func in SOFTMAX:
            logits, dim, _ = softmax_arguments(*args, **kwargs)
            self._note("softmax", tuple(logits.shape), dim)
        elif func is F.multi_head_attention_forward:
            self._note("multi_head_attention_forward", _multi_head_logits_shape(*args))
        return func(*args, **kwargs)

    def _note(self, function: Function, logits_shape: tuple[int, ...], dim: int = -1) -> None:
        layer, cls = self._stack[-1]
        self.calls.append(AttentionCall(layer, cls, function, logits_shape, dim))


def softmax_arguments(
    input: Tensor, dim: int | None = None, *further: object, dtype: torch.dtype | None = None, **_: object
) -> tuple[Tensor, int, torch.dtype | None]:
    """Logits, axis counted from the end, and result type of a call of any of torch's softmax functions."""
    if dim is None:
        raise InputError("a softmax without its axis was found: write softmax(logits, dim=-1)")
    dtypes = [argument for argument in further if isinstance(argument, torch.dtype)]  # F.softmax has one more before it
    return input, dim - input.dim() if dim >= 0 else dim, dtypes[0] if dtypes else dtype


def _sdpa_logits_shape(query: Tensor, key: Tensor, *_: object, enable_gqa: bool = False, **__: object) -> tuple[int, ...]:
    return logits_shape(query, key, enable_gqa=enable_gqa)


def _multi_head_logits_shape(
    query: Tensor, key: Tensor, _value: Tensor, _embed_dim: int, num_heads: int, *further: object
) -> tuple[int, ...]:
    _in_proj_weight, _in_proj_bias, bias_k, _bias_v, add_zero_attn, *_ = further
    num_keys = len(key) + (bias_k is not None) + bool(add_zero_attn)
    batch = query.shape[1] if query.dim() == 3 else 1  # (N, B, C), or (N, C)
    return (batch, num_heads, len(query), num_keys)


def _tensors(value: object) -> Iterable[Tensor]:
    """All tensors in nested containers: of a module's attributes these are parameters, buffers and what it caches."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
