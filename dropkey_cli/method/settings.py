"""What a user can say about DropKey."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from dropkey_cli.errors import InputError, did_you_mean

Schedule = Literal["decreasing", "constant", "increasing"]
Structure = Literal["element", "key", "block", "cross"]


@dataclass(frozen=True)
class DropKeySettings:
    """How strongly, where and in which pattern keys are dropped (DropKey, arXiv:2208.02646).

    Args:
        ratio: Drop ratio the schedule starts from: the share of keys each query loses, in [0, 1).
        schedule: Ratio per attention layer: decreasing (the paper's choice: from ratio in the first layer to final_ratio
            in the last), increasing (its mirror image), constant, or an explicit list with one ratio per layer.
        final_ratio: Ratio at the far end of the decreasing and increasing schedules, in [0, 1).
        match_mean: Rescale the schedule so that the mean over the layers is exactly ratio.
        structure: element: every query draws its own keys (the paper); key: all queries of a head lose the same keys;
            block: every query loses square windows of the token grid; cross: whole rows and columns of it.
        window_size: Side of the square windows that structure block drops, in tokens.
        share_talking_heads: Where a model mixes its heads after the softmax (CaiT, EfficientFormerV2), let all heads of a
            layer lose the same keys: else what one head dropped comes back through another.
        include: Also apply to these layers: patterns of layer names or class names, e.g.
            '["head.attn_pool", "*.MyAttention"]'.
        exclude: Leave these layers alone: patterns of layer names or class names.

    Raises:
        InputError: If a ratio lies outside [0, 1), or a name is unknown.
    """

    ratio: float = 0.3
    schedule: Schedule | list[float] = "decreasing"
    final_ratio: float = 0.0
    match_mean: bool = False
    structure: Structure = "element"
    window_size: int = 3
    share_talking_heads: bool = False
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_ratio("ratio", self.ratio)
        check_ratio("final_ratio", self.final_ratio)
        if isinstance(self.schedule, str):
            check_choice("schedule", self.schedule, get_args(Schedule))
        else:
            for position, ratio in enumerate(self.schedule):
                check_ratio(f"schedule[{position}]", ratio)
        check_choice("structure", self.structure, get_args(Structure))
        for name, patterns in (("include", self.include), ("exclude", self.exclude)):
            if isinstance(patterns, str):
                raise InputError(f"{name} {patterns!r} is one word: give a list of patterns, [{patterns!r}]")
        if self.window_size < 1:
            raise InputError(f"window_size {self.window_size!r} is no side of a window: give a number of tokens, 1 or more")


def check_ratio(name: str, ratio: float) -> None:
    """Refuse a drop ratio outside [0, 1).

    Raises:
        InputError: If it is.
    """
    if not 0 <= ratio < 1:
        raise InputError(f"{name} {ratio!r} is not a drop ratio: give a share of the keys from 0 up to, but not including, 1")


def check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Refuse a word that is not among the accepted ones.

    Raises:
        InputError: If it is not.
    """
    if value not in accepted:
        raise InputError(f"{name} {value!r} is unknown: give one of {', '.join(accepted)}{did_you_mean(value, accepted)}")
