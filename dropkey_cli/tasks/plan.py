"""What the plan of a run says of its recipe, in words."""

from typing import Any

from torch import Tensor, nn

from dropkey_cli.tasks.mixing import BatchMixing


def network_line(network: nn.Module, model_name: str, frozen: object) -> tuple[str, str]:
    """The network, its size, and what of it is trained.

    Args:
        network: Built, its frozen weights marked.
        model_name: timm's name.
        frozen: What was asked to be frozen.
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    text = f"{model_name}, {total / 1e6:.2f} M parameters"
    if frozen is not None:
        what = frozen if isinstance(frozen, str) else ", ".join(map(str, frozen if isinstance(frozen, list) else [frozen]))
        text += f", {trained / 1e6:.4g} M of them trained (frozen: {what}; DropKey and drop path act there too)"
    return "model", text


def resampling_lines(size: int, native: int) -> list[tuple[str, str]]:
    """What becomes of pretrained position embeddings, where the images (height and width in pixels) are of another size."""
    text = f"position embeddings of {native} × {native} images are resampled to {size} × {size}"
    return [] if size == native else [("", text)]


def optimizer_line(
    name: str, arguments: dict[str, Any], *, lr: float, layer_decay: float, weight_decay: float
) -> tuple[str, str]:
    """The optimizer with its rates."""
    further = "".join(f", {key} {value}" for key, value in arguments.items())
    shown = {"adamw": "AdamW", "sgd": "SGD", "lamb": "LAMB"}.get(name.lower(), name)
    decay = f"weight decay {weight_decay:g}" + (" (none on biases and norms)" if weight_decay else "")
    return "optimizer", f"{shown}{further}, lr {lr:.3g}, layer decay {layer_decay:g}, {decay}"


def schedule_line(schedule: str, arguments: dict[str, Any], *, warmup_share: float, monitor: str) -> tuple[str, str]:
    """How the learning rate changes."""
    end = f"to {arguments['min_lr']:g}" if "min_lr" in arguments else ""
    if schedule == "step":
        places = ", ".join(f"{share:.0%}" for share in arguments["milestones"])
        text = f"times {arguments['decay_rate']:g} after {places} of the steps"
    elif schedule == "wsd":
        text = f"constant, then down {end} in the last {arguments['decay_share']:.0%} of the steps"
    elif schedule == "plateau":
        text = f"times {arguments['decay_rate']:g} when {monitor} has not improved in {arguments['patience'] + 1} validations"
    elif schedule == "poly":
        text = f"polynomial of power {arguments['power']:g} {end}"
    else:
        text = f"{schedule} {end}".strip()
    return "schedule", (f"{warmup_share:.0%} warm-up, then {text}" if warmup_share else text)


def loss_lines(loss: str, smoothing: float, weights: Tensor | None, class_names: list[str]) -> list[tuple[str, str]]:
    """The training loss, where it is not simply the cross-entropy.

    Args:
        loss: cross_entropy or bce.
        smoothing: Label smoothing.
        weights: Weight of each class (K,); None for even ones.
        class_names: Their names.
    """
    if loss == "cross_entropy" and weights is None:
        return []
    text = {"bce": "binary cross-entropy of each class"}.get(loss, "cross-entropy") + f", label smoothing {smoothing:g}"
    if weights is not None:
        shown = [f"{name} {weight:.3g}" for name, weight in zip(class_names[:5], weights.tolist(), strict=False)]
        shown += ["…"] * (len(class_names) > 5)
        text += f", class weights {', '.join(shown)}"
    return [("loss", text)]


def mixing_lines(mixing: BatchMixing, off_share: float) -> list[tuple[str, str]]:
    """What is done to batches in training, where anything is."""
    names = {"mixup": mixing.mixup, "cutmix": mixing.cutmix}
    kinds = " or ".join(f"{name} (alpha {alpha:g})" for name, alpha in names.items() if alpha > 0)
    text = []
    if mixing.erase_probability > 0:
        text.append(f"random erasing of {mixing.erase_probability:.0%} of the images")
    if mixing.mixes:
        until = f", but not in the last {off_share:.0%} of the steps" if off_share else ""
        text.append(f"{kinds} of {mixing.mix_probability:.0%} of the batches{until}; metrics of training go by the larger part")
    return [("batches", "; ".join(text))] if text else []
