"""Which of the recorded attention layers take DropKey, which are left alone and why, and which models are refused."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.discovery import AttentionCall, Function
from dropkey_cli.patching.known import INCLUDED, Kind, Rule, class_name, rule_for


@dataclass(frozen=True)
class AttentionLayer:
    """A module that attends over keys.

    Args:
        name: Its path in the model.
        class_name: Its class, with the class's module.
        kind: key (tokens attend to tokens), class (a class token attends) or pool (a pooling head).
        function: How it attends: by ``scaled_dot_product_attention``, ``softmax`` or ``multi_head_attention_forward``.
        queries: Number of queries of the recorded image size.
        keys: Number of keys each query attends to.
        heads: Number of heads; 1 where they are folded into the batch.
        rule: What the table knows about the class.
    """

    name: str
    class_name: str
    kind: Kind
    function: Function
    queries: int
    keys: int
    heads: int
    rule: Rule


@dataclass(frozen=True)
class LeftAlone:
    """An attention module without DropKey, and why."""

    name: str
    class_name: str
    why: str


@dataclass(frozen=True)
class Selection:
    """The outcome for one model."""

    selected: list[AttentionLayer]
    left_alone: list[LeftAlone]


class NoAttentionError(InputError):
    """A model has no layer that takes DropKey; ``left_alone`` says what it has instead, one module of each class."""

    def __init__(self, model_name: str, left_alone: list[LeftAlone]) -> None:
        self.left_alone = list({layer.class_name: layer for layer in left_alone}.values())
        found = [f"{layer.name or 'the model itself'}, a {layer.class_name}, {layer.why}" for layer in self.left_alone]
        super().__init__(
            f"{model_name} has no attention layer that DropKey can act on (found: {'; '.join(found) or 'none'}). Choose a "
            "vision transformer, e.g. --model.model_name deit_small_patch16_224, or train without DropKey: --model.dropkey null"
        )


def select_layers(calls: list[AttentionCall], settings: DropKeySettings, *, model_name: str) -> Selection:
    """Sort the recorded calls' modules into those that take DropKey and those left alone, in order of first execution.

    Raises:
        NoAttentionError: If no layer is left.
        InputError: If an unknown class attends, or a pattern matches nothing.
    """
    firsts = _first_calls(calls)
    for option in ("include", "exclude"):
        _check_patterns(option, getattr(settings, option), firsts, model_name)
    selected, left_alone = [], []
    for call in firsts:
        why = _why_not(call, settings)
        if why is None:
            selected.append(_layer(call, rule_for(call.cls) or INCLUDED))
        else:
            left_alone.append(LeftAlone(call.layer, class_name(call.cls), why))
    # A class token or a pooling head alone is not what the paper regularises: only on purpose.
    if not any(layer.kind == "key" for layer in selected):
        included = {call.layer for call in firsts if matches(call, settings.include)}
        why = "is a class token's attention only (add it to include for DropKey there)"
        left_alone += [LeftAlone(layer.name, layer.class_name, why) for layer in selected if layer.name not in included]
        selected = [layer for layer in selected if layer.name in included]
    _check_nesting(selected, firsts)
    if not selected:
        raise NoAttentionError(model_name, left_alone)
    if settings.share_talking_heads and not any(layer.rule.talking_heads for layer in selected):
        raise InputError(f"share_talking_heads is for models that mix their heads, {model_name} does not: leave it out")
    return Selection(selected, left_alone)


def matches(call: AttentionCall, patterns: Iterable[str]) -> bool:
    """Whether a layer's name, its class or the class's full name matches one of the patterns (``*``, ``?``, ``[…]``)."""
    names = (call.layer, call.cls.__name__, class_name(call.cls))
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _first_calls(calls: list[AttentionCall]) -> list[AttentionCall]:
    """One call per module: the first over keys, else the first of any kind."""
    firsts: dict[str, AttentionCall] = {}
    for call in calls:
        known = firsts.get(call.layer)
        if known is None or (call.over_keys and not known.over_keys):
            firsts[call.layer] = call
    return list(firsts.values())


def _why_not(call: AttentionCall, settings: DropKeySettings) -> str | None:
    """Why a module takes no DropKey; None if it does."""
    rule = rule_for(call.cls)
    if matches(call, settings.exclude):
        return "is excluded"
    included = matches(call, settings.include)
    if rule is None and not included:
        raise InputError(_unknown(call))
    if rule is not None and rule.kind == "refuse":
        if included:
            raise InputError(
                f"{call.layer} ({class_name(call.cls)}) cannot take DropKey: it {rule.why}. Take it out of include"
            )
        return rule.why
    if not call.over_keys:
        return f"has a softmax over axis {call.dim} of {call.logits_shape}, which is not over keys"
    if rule is not None and rule.why and not included:
        return f"{rule.why} (add it to include for DropKey there too)"
    return None


def _layer(call: AttentionCall, rule: Rule) -> AttentionLayer:
    *_, queries, keys = shape = call.logits_shape
    heads = 1 if len(shape) == 3 or rule.heads_axis is None else shape[rule.heads_axis]
    return AttentionLayer(call.layer, class_name(call.cls), rule.kind, call.function, queries, keys, heads, rule)


def _check_nesting(selected: list[AttentionLayer], calls: list[AttentionCall]) -> None:
    """Refuse a layer with another attention module inside: what the inner one calls would be caught for the outer one too."""
    for layer in selected:
        prefix = f"{layer.name}." if layer.name else ""
        inside = [call.layer for call in calls if call.layer != layer.name and call.layer.startswith(prefix)]
        if inside:
            raise InputError(
                f"layer {layer.name!r} ({layer.class_name}) attends itself and contains {inside[0]!r}, which attends too: "
                f"DropKey cannot tell their calls apart; leave the outer one alone (exclude: [{layer.class_name!r}])"
            )


def _unknown(call: AttentionCall) -> str:
    name = class_name(call.cls)
    return (
        f"layer {call.layer!r} ({name}) calls {call.function} on logits of shape {call.logits_shape}; DropKey does not know "
        f"whether its last axis are keys: if they are, include it (include: [{name!r}]); if not, exclude: [{name!r}]"
    )


def _check_patterns(option: str, patterns: list[str], calls: list[AttentionCall], model_name: str) -> None:
    for pattern in patterns:
        if not any(matches(call, [pattern]) for call in calls):
            layers = ", ".join(call.layer for call in calls[:5]) or "none"
            raise InputError(
                f"{option} {pattern!r} matches no attention layer of {model_name}: its layers are {layers}"
                f"{' …' if len(calls) > 5 else ''} (dropkey inspect MODEL lists all)"
            )
