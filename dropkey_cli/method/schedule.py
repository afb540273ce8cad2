"""The drop ratio of every attention layer."""

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings, check_ratio


def layer_ratios(settings: DropKeySettings, num_layers: int) -> list[float]:
    """Drop ratio of each of ``num_layers`` attention layers, in order of first execution.

    The paper decreases the ratio linearly with depth; its end values are not known to us, ours run from ``ratio``
    to ``final_ratio``: r_l = ratio + (final_ratio - ratio) * l / (L - 1) for l = 0 … L-1, and ``ratio`` where L = 1.

    Raises:
        InputError: If an explicit list has another length, or rescaling to the mean leaves [0, 1).
    """
    ratios = _ramp(settings, num_layers)
    if not settings.match_mean:
        return ratios
    if settings.ratio == 0:
        return [0.0] * num_layers
    mean = sum(ratios) / num_layers
    if mean == 0:
        raise InputError(f"match_mean cannot scale a schedule of zeros to mean {settings.ratio!r}: give other ratios")
    ratios = [ratio * settings.ratio / mean for ratio in ratios]
    check_ratio(f"with match_mean the largest of the {num_layers} layers' ratios,", max(ratios))
    return ratios


def _ramp(settings: DropKeySettings, num_layers: int) -> list[float]:
    if not isinstance(settings.schedule, str):
        if len(settings.schedule) != num_layers:
            raise InputError(
                f"schedule lists {len(settings.schedule)} ratios, the model has {num_layers} layers with DropKey: "
                f"give {num_layers} ratios or a schedule's name, e.g. decreasing"
            )
        return list(settings.schedule)
    if settings.schedule == "constant" or num_layers == 1:
        return [settings.ratio] * num_layers
    change = settings.final_ratio - settings.ratio
    ramp = [settings.ratio + change * layer / (num_layers - 1) for layer in range(num_layers)]
    return ramp[::-1] if settings.schedule == "increasing" else ramp
