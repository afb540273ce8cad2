"""The losses of classification, as functions of logits and labels; labels are class indices or shares of the classes."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkey_cli.errors import InputError


def soft_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Labels as shares of the classes (B, K), float32.

    Args:
        labels: Class indices (B,), or shares (B, K) already.
        num_classes: Number of classes K.
    """
    return labels.float() if labels.ndim == 2 else F.one_hot(labels, num_classes).float()


def smoothed(labels: Tensor, smoothing: float) -> Tensor:
    """Shares (B, K) of which the part ``smoothing`` is given to all classes evenly."""
    return labels * (1 - smoothing) + smoothing / labels.shape[1]


def cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Mean over images of the cross-entropy, ().

    Args:
        logits: (B, K).
        labels: Class indices (B,) or shares (B, K).
        smoothing: Part of each label that is given to all classes evenly, in [0, 1).
        weights: Factor (K,) on each class's part of the loss. The sum is divided by the number of images, not by that of their
            weights as torch does with indices: so an image counts the same in whatever batch, mixed or not.
    """
    if labels.ndim == 1 and weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    shares = smoothed(soft_labels(labels, logits.shape[1]), smoothing)
    return F.cross_entropy(logits.float(), shares, weight=weights)


def binary_cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Mean over images and classes of the binary cross-entropy of each class against all others (DeiT III), ().

    Args:
        logits: (B, K).
        labels: Class indices (B,) or shares (B, K).
        smoothing: Part of each label that is given to all classes evenly, in [0, 1).
        weights: Factor (K,) on each class's part of the loss.
    """
    shares = smoothed(soft_labels(labels, logits.shape[1]), smoothing)
    return F.binary_cross_entropy_with_logits(logits.float(), shares, weight=weights)


def class_weights_of(asked: Literal["balanced"] | list[float] | None, data: Any) -> Tensor | None:  # noqa: ANN401 - any data
    """The weight of each class, (K,).

    Args:
        asked: ``balanced``, or the weights themselves; None for none.
        data: With ``class_names``, and for ``balanced`` the training images in ``splits["train"]``.

    Raises:
        InputError: If there is not one weight from 0 for each class, or a class to balance has no image.
    """
    names = list(data.class_names)
    if asked is None:
        return None
    if isinstance(asked, str):
        return torch.tensor(balanced_weights(data.splits["train"].class_counts(len(names)), names))
    if len(asked) != len(names) or min(asked) < 0 or max(asked) == 0:
        raise InputError(
            f"class_weights is {asked!r}; expected {len(names)} numbers from 0, one for each of the classes "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}; give --model.class_weights, or balanced"
        )
    return torch.tensor(asked)


def balanced_weights(counts: list[int], class_names: list[str]) -> list[float]:
    """Weights of the classes under which each counts as much as any other; their mean over the images is 1.

    Args:
        counts: Training images of each class.
        class_names: Their names, for the message.

    Raises:
        InputError: If a class has no image.
    """
    if empty := [name for name, count in zip(class_names, counts, strict=True) if count == 0]:
        raise InputError(
            f"class_weights is 'balanced', but {len(empty)} classes have no training image, such as {empty[0]!r}: "
            "add images, or give --model.class_weights as a list"
        )
    return [sum(counts) / (len(counts) * count) for count in counts]


def normalized_sigmoid(logits: Tensor) -> Tensor:
    """Class probabilities (B, K) of a network trained by `binary_cross_entropy`: its sigmoids, scaled to the sum 1."""
    log_p = F.logsigmoid(logits.float())
    return torch.softmax(log_p, -1)  # exp(log p) over its sum, also where every p is tiny
