"""Drops keys inside a module that was written without DropKey.

The module's class is replaced by a subclass whose forward runs under a function mode; the mode catches the softmax or SDPA
call. The mode is entered per attention module because recomputation under activation checkpointing happens in the
backward pass, outside of anything that was entered around the model; the class is replaced, rather than the instance's
forward, because copies of the model (EMA) must call their own weights.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropkey_cli.method.attention import dropkey_attention
from dropkey_cli.method.mask import KeyLayout, seed_tensor
from dropkey_cli.method.multi_head import dropkey_multi_head_attention_forward
from dropkey_cli.method.settings import Structure
from dropkey_cli.method.softmax import dropkey_softmax
from dropkey_cli.patching.discovery import SDPA, SOFTMAX, softmax_arguments
from dropkey_cli.patching.known import Rule


class LayerDropKey:
    """DropKey's state of one layer, a plain attribute of the module: no buffer, so in no state_dict, broadcast or average.

    Args:
        ratio: Drop ratio in [0, 1).
        rule: What is special about the module's class.
        structure: Pattern of the dropped keys.
        layout: How the keys lie on a grid, for the structures block and cross.
        shared_heads: So many neighbouring heads share one mask.
    """

    def __init__(
        self,
        ratio: float,
        rule: Rule,
        *,
        structure: Structure = "element",
        layout: KeyLayout | None = None,
        shared_heads: int = 1,
    ) -> None:
        # Both stay real and exact whatever default device and dtype the model is built under (meta, bfloat16).
        self.ratio = torch.tensor(ratio, dtype=torch.float32, device="cpu")  # a tensor: a new value compiles nothing anew
        self.counts = torch.zeros(2, dtype=torch.int64, device="cpu")  # dropped draws, all draws
        self.rule = rule
        self.structure = structure
        self.layout = layout
        self.shared_heads = shared_heads
        self.nonzero = ratio > 0
        self.enabled = True
        self.sampling = False  # Monte Carlo: also in eval

    def acts(self, training: bool) -> bool:
        """Whether keys are dropped in this forward."""
        return self.nonzero and self.enabled and (training or self.sampling)

    def set_ratio(self, ratio: float) -> None:
        """Another ratio, in place."""
        self.ratio.fill_(ratio)
        self.nonzero = ratio > 0

    def to(self, device: torch.device) -> None:
        """Move to ``device``; values survive a detour over the meta device."""
        if device.type != "meta" and device != self.counts.device:
            self.ratio, self.counts = self.ratio.to(device), self.counts.to(device)


class KeyDropping(nn.Module):
    """Mix-in of the classes that `intercepted_class` makes."""

    dropkey: LayerDropKey

    def _forward_dropping_keys(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the wrapped class decides
        """What the wrapped class computes, with keys dropped where `LayerDropKey.acts`."""
        if not self.dropkey.acts(self.training):
            return super().forward(*args, **kwargs)
        if self.dropkey.rule.finite_mask:
            args, kwargs = _with_infinite_mask(*args, **kwargs)
        with _Interception(self.dropkey):
            return super().forward(*args, **kwargs)

    # By another name, because torch.export notes in the program where every function called forward was defined.
    forward = _forward_dropping_keys

    def extra_repr(self) -> str:
        """What the wrapped class says of itself, and the drop ratio (the class keeps its name: exported programs bear it)."""
        said = super().extra_repr()
        return ", ".join(filter(None, [said, f"dropkey={float(self.dropkey.ratio):.4g}"]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # .to(device), .cuda() and .to_empty() pass through here. Only the device is followed, never the dtype.
        self.dropkey.to(fn(torch.empty(0, device=self.dropkey.counts.device)).device)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]  # torch leaves it untyped

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401
        if not is_outermost(self):
            return super().__reduce_ex__(protocol)
        # The class exists at run time only: pickle and deepcopy make it again from the wrapped one.
        state = self.__getstate__()  # type: ignore[no-untyped-call]  # nn.Module's leaves out what torch.compile put there
        return _rebuild, (wrapped_class(type(self)),), state


def _with_infinite_mask(x: Tensor, mask: Tensor | None = None) -> tuple[tuple[Tensor], dict[str, Tensor | None]]:
    """Arguments of a window attention whose mask forbids with -100: a query that lost all its keys must not attend there."""
    return (x,), {"mask": None if mask is None else mask.masked_fill(mask < 0, -torch.inf)}


_INTERCEPTED: dict[type[nn.Module], type[nn.Module]] = {}


def intercepted_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``cls`` that drops keys; the same one each time."""
    if cls not in _INTERCEPTED:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _INTERCEPTED[cls] = type(cls.__name__, (KeyDropping, cls), names)
    return _INTERCEPTED[cls]


def wrapped_class(cls: type) -> type[nn.Module]:
    """The class that `intercepted_class` was given."""
    wrapped: type[nn.Module] = cls.__mro__[cls.__mro__.index(KeyDropping) + 1]
    return wrapped


def is_outermost(module: nn.Module) -> bool:
    """Whether no other tool (FSDP2, a parametrization) has put a class of its own over the one with DropKey."""
    return type(module) is intercepted_class(wrapped_class(type(module)))


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    intercepted = intercepted_class(cls)
    return intercepted.__new__(intercepted)


class _Interception(TorchFunctionMode):
    """Replaces the softmax over keys by one that drops keys, for one forward of one module."""

    def __init__(self, layer: LayerDropKey) -> None:
        super().__init__()
        self.layer = layer
        self.seed: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        kwargs = kwargs or {}
        if func in SDPA:
            return self._attention(*args, **kwargs)
        if func in SOFTMAX:
            logits, dim, dtype = softmax_arguments(*args, **kwargs)
            if dim == -1 and logits.dim() >= 3:
                return self._softmax(logits, dtype)
        finite = self.layer.rule.finite_fill
        if finite is not None and func is Tensor.masked_fill and args[2:] == (finite,):
            args = (*args[:2], -torch.inf)  # as in `_with_infinite_mask`
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        return dropkey_attention(
            query,
            key,
            value,
            self.layer.ratio,
            attn_mask,
            is_causal=is_causal,
            scale=scale,
            structure=self.layer.structure,
            layout=self.layer.layout,
            seed=self._seed(query.device),
            dropout_p=dropout_p,
            enable_gqa=enable_gqa,
            counts=self.layer.counts,
        )

    def _softmax(self, logits: Tensor, dtype: torch.dtype | None) -> Tensor:
        rule = self.layer.rule
        return dropkey_softmax(
            logits,
            self.layer.ratio,
            structure=self.layer.structure,
            layout=self.layer.layout,
            seed=self._seed(logits.device),
            dtype=dtype,
            keep_empty_rows=rule.keep_empty_rows,
            shared_heads=self.layer.shared_heads,
            counts=self.layer.counts,
        )

    def _multi_head(self, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401 - torch's
        return dropkey_multi_head_attention_forward(
            query,
            *args,
            **kwargs,
            ratio=self.layer.ratio,
            structure=self.layer.structure,
            layout=self.layer.layout,
            seed=self._seed(query.device),
            counts=self.layer.counts,
        )

    def _seed(self, device: torch.device) -> Tensor:
        self.layer.to(device)  # before its counts are read: FSDP moves parameters past `_apply`
        if self.seed is None or not self.layer.rule.share_mask:
            self.seed = seed_tensor(None, device)
        return self.seed
