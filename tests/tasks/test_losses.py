from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from timm.data import mixup
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.cross_entropy import SoftTargetCrossEntropy

from dropkey_cli.errors import InputError
from dropkey_cli.tasks.losses import (
    balanced_weights,
    binary_cross_entropy,
    class_weights_of,
    cross_entropy,
    normalized_sigmoid,
    smoothed,
    soft_labels,
)

B, K = 6, 5
LOGITS = torch.randn(B, K, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
SHARES = torch.rand(B, K, generator=torch.Generator().manual_seed(2)).softmax(1)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0])


def exact(value: torch.Tensor) -> Any:  # noqa: ANN401 - pytest's approx
    return pytest.approx(float(value), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_indices_and_one_hot_shares_give_torchs_cross_entropy(smoothing: float) -> None:
    expected = F.cross_entropy(LOGITS.double(), LABELS, label_smoothing=smoothing)
    assert float(cross_entropy(LOGITS, LABELS, smoothing=smoothing)) == exact(expected)
    assert float(cross_entropy(LOGITS, F.one_hot(LABELS, K).float(), smoothing=smoothing)) == exact(expected)


def test_indices_without_weights_stay_torchs_own_to_the_last_bit() -> None:
    assert torch.equal(cross_entropy(LOGITS, LABELS, smoothing=0.1), F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1))


def test_shares_give_timms_soft_target_loss() -> None:
    theirs: Any = SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]  # timm's
    assert float(cross_entropy(LOGITS, SHARES)) == exact(theirs(LOGITS.double(), SHARES.double()))


@pytest.mark.parametrize("shares", [False, True])
def test_a_weighted_image_counts_the_same_whatever_its_batch(shares: bool) -> None:
    labels = F.one_hot(LABELS, K).float() if shares else LABELS
    alone = [cross_entropy(LOGITS[i : i + 1], labels[i : i + 1], weights=WEIGHTS) for i in range(B)]
    by_hand = WEIGHTS.double()[LABELS] * F.cross_entropy(LOGITS.double(), LABELS, reduction="none")
    assert [float(loss) for loss in alone] == pytest.approx(by_hand.tolist(), abs=1e-6)
    assert float(cross_entropy(LOGITS, labels, weights=WEIGHTS)) == exact(by_hand.mean())


def test_weights_act_on_the_smoothed_parts_as_in_torch() -> None:
    expected = F.cross_entropy(LOGITS.double(), LABELS, weight=WEIGHTS.double(), label_smoothing=0.2, reduction="none").mean()
    assert float(cross_entropy(LOGITS, LABELS, smoothing=0.2, weights=WEIGHTS)) == exact(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_binary_cross_entropy_is_timms(smoothing: float, weights: torch.Tensor | None) -> None:
    theirs = BinaryCrossEntropy(smoothing=smoothing, weight=None if weights is None else weights.double())
    expected = theirs(LOGITS.double(), LABELS)
    assert float(binary_cross_entropy(LOGITS, LABELS, smoothing=smoothing, weights=weights)) == exact(expected)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_mixed_and_smoothed_labels_are_those_of_timms_mixup(loss: Any) -> None:  # noqa: ANN401 - either
    timms: Any = mixup.mixup_target
    targets = timms(LABELS, K, lam=0.7, smoothing=0.1)  # which pairs the batch with itself reversed
    one_hot = F.one_hot(LABELS, K).float()
    mixed = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    torch.testing.assert_close(smoothed(mixed, 0.1), targets)
    assert float(loss(LOGITS, mixed, smoothing=0.1)) == exact(loss(LOGITS.double(), targets.double()))


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy])
def test_shares_are_computed_in_float32_whatever_the_logits(loss: Any) -> None:  # noqa: ANN401 - either
    logits = LOGITS.bfloat16()
    result = loss(logits, SHARES, smoothing=0.1, weights=WEIGHTS)
    assert result.dtype == torch.float32
    assert float(result) == exact(loss(logits.float(), SHARES, smoothing=0.1, weights=WEIGHTS))


def test_soft_labels_of_indices_and_of_shares() -> None:
    assert soft_labels(torch.tensor([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert soft_labels(SHARES.double(), K).dtype == torch.float32


def test_balanced_weights_are_scikit_learns_and_average_1_over_the_images() -> None:
    labels = [0] * 5 + [1] * 1 + [2] * 14
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    weights = balanced_weights([5, 1, 14], ["a", "b", "c"])
    assert weights == pytest.approx(list(expected))
    assert sum(weights[label] for label in labels) / len(labels) == pytest.approx(1)


def data(*counts: int) -> Any:  # noqa: ANN401 - the little of a data module that is looked at
    train = SimpleNamespace(class_counts=lambda num_classes: list(counts)[:num_classes])
    return SimpleNamespace(class_names=[f"class{number}" for number in range(len(counts))], splits={"train": train})


def test_class_weights_come_from_the_training_images_or_as_they_are() -> None:
    assert class_weights_of(None, data(1, 3)) is None
    torch.testing.assert_close(class_weights_of("balanced", data(1, 3)), torch.tensor([2, 2 / 3]))
    torch.testing.assert_close(class_weights_of([1.0, 0.0], data(1, 3)), torch.tensor([1.0, 0.0]))


def test_a_class_without_images_cannot_be_balanced() -> None:
    with pytest.raises(InputError, match="1 classes have no training image, such as 'class1'"):
        class_weights_of("balanced", data(4, 0))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, 2.0, 3.0]])
def test_weights_that_cannot_be_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match=r"^class_weights is \[.*; expected 2 numbers from 0, .* class0, class1; give"):
        class_weights_of(weights, data(1, 1))


def test_normalized_sigmoids_are_probabilities_in_the_order_of_the_logits() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [-200.0, -199.0, -300.0]])  # every sigmoid of the second is 0 in float32
    probabilities = normalized_sigmoid(logits.bfloat16())
    sigmoids = logits[0].double().sigmoid()
    assert probabilities[0].tolist() == pytest.approx((sigmoids / sigmoids.sum()).tolist(), abs=1e-6)
    assert probabilities[1].tolist() == pytest.approx([0.2689, 0.7311, 0], abs=1e-3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
