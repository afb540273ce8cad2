"""Drops keys inside a module that was written without DropKey.

The module's class is replaced by a subclass whose forward runs under a function mode; the mode catches the softmax or SDPA
call. The mode is entered per attention module because recomputation under activation checkpointing happens in the
backward pass, outside of anything that was entered around the model; the class is replaced, rather than the instance's
forward, because copies of the model (EMA) must call their own weights.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropkey_cli.method.attention import dropkey_attention
from dropkey_cli.method.mask import sample_seeds, seed_tensor
from dropkey_cli.method.multi_head import dropkey_multi_head_attention_forward
from dropkey_cli.method.softmax import dropkey_softmax
from dropkey_cli.patching.counting import add_unless_recomputed, recomputing
from dropkey_cli.patching.discovery import SDPA, SOFTMAX, softmax_arguments
from dropkey_cli.patching.layer import LayerDropKey
from dropkey_cli.patching.observation import Observation


class KeyDropping(nn.Module):
    """Mix-in of the classes that `intercepted_class` makes."""

    dropkey: LayerDropKey

    def _forward_dropping_keys(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the wrapped class decides
        """What the wrapped class computes, with keys dropped where `LayerDropKey.acts`."""
        if not self.dropkey.acts(self.training):
            return self._forward_observed(None, *args, **kwargs)
        if self.dropkey.rule.finite_mask:
            args, kwargs = _with_infinite_mask(*args, **kwargs)
        masks = _Masks(self.dropkey)
        with _Interception(self.dropkey, masks):
            output = self._forward_observed(masks, *args, **kwargs)
        masks.count()
        return output

    def _forward_observed(self, masks: "_Masks | None", *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """What the wrapped class computes, its attention weights shown if someone asks for them."""
        if self.dropkey.observe is None:
            return super().forward(*args, **kwargs)
        with Observation(self.dropkey.observe, masks):
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


class _Mask(TypedDict):
    seed: Tensor
    counts: Tensor | None


class _Masks:
    """The masks of one forward of one module: their seeds, and where their draws are counted."""

    def __init__(self, layer: LayerDropKey) -> None:
        self.layer = layer
        self.seed: Tensor | None = None
        self.repeating = False  # the last mask once more, to show its weights
        self.counts: Tensor | None = None  # of compiled code, which learns only as it runs whether it recomputes

    def next(self, device: torch.device) -> _Mask:
        """Seed of the next call's mask and where its draws are counted: nowhere if they were counted before."""
        self.layer.to(device)  # before its counts are read: FSDP moves parameters past `_apply`
        if self.seed is not None and (self.repeating or self.layer.rule.share_mask):
            return {"seed": self.seed, "counts": None}
        self.seed = seed_tensor(None, device)
        if self.layer.images is not None:
            self.seed = sample_seeds(self.seed, self.layer.images)
        if not torch.compiler.is_compiling():
            return {"seed": self.seed, "counts": None if recomputing() else self.layer.counts}
        if self.counts is None:
            self.counts = torch.zeros_like(self.layer.counts)
        return {"seed": self.seed, "counts": self.counts}

    def count(self) -> None:
        """Add what compiled code has counted in this forward."""
        if self.counts is not None:
            add_unless_recomputed(self.layer.counts, self.counts)


class _Interception(TorchFunctionMode):
    """Replaces the softmax over keys by one that drops keys, for one forward of one module."""

    def __init__(self, layer: LayerDropKey, masks: _Masks) -> None:
        super().__init__()
        self.layer = layer
        self.masks = masks

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
            dropout_p=dropout_p,
            enable_gqa=enable_gqa,
            **self.masks.next(query.device),
        )

    def _softmax(self, logits: Tensor, dtype: torch.dtype | None) -> Tensor:
        rule = self.layer.rule
        return dropkey_softmax(
            logits,
            self.layer.ratio,
            structure=self.layer.structure,
            layout=self.layer.layout,
            dtype=dtype,
            keep_empty_rows=rule.keep_empty_rows,
            shared_heads=self.layer.shared_heads,
            **self.masks.next(logits.device),
        )

    def _multi_head(self, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401 - torch's
        return dropkey_multi_head_attention_forward(
            query,
            *args,
            **kwargs,
            ratio=self.layer.ratio,
            structure=self.layer.structure,
            layout=self.layer.layout,
            **self.masks.next(query.device),
        )
