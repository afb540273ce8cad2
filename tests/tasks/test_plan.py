from typing import Any

import pytest
import torch
from torch import nn

from dropkey_cli.tasks.mixing import BatchMixing
from dropkey_cli.tasks.plan import loss_lines, mixing_lines, network_line, optimizer_line, resampling_lines, schedule_line
from dropkey_cli.tasks.schedules import schedule_arguments


def test_the_network_and_what_of_it_is_trained() -> None:
    network = nn.Sequential(nn.Linear(999, 1000), nn.Linear(1000, 100))
    assert network_line(network, "vit", None) == ("model", "vit, 1.10 M parameters")
    network[0].requires_grad_(False)
    assert network_line(network, "vit", ["0"])[1] == (
        "vit, 1.10 M parameters, 0.1001 M of them trained (frozen: 0; DropKey and drop path act there too)"
    )
    assert "(frozen: backbone; " in network_line(network, "vit", "backbone")[1]


def test_the_optimizer() -> None:
    line = optimizer_line("adamw", {"betas": [0.9, 0.95]}, lr=1e-3, layer_decay=0.75, weight_decay=0.05)
    text = "AdamW, betas [0.9, 0.95], lr 0.001, layer decay 0.75, weight decay 0.05 (none on biases and norms)"
    assert line == ("optimizer", text)
    assert (
        optimizer_line("lion", {}, lr=1.0, layer_decay=1.0, weight_decay=0.0)[1] == "lion, lr 1, layer decay 1, weight decay 0"
    )


@pytest.mark.parametrize(
    ("schedule", "given", "warmup_share", "text"),
    [
        ("cosine", {}, 0.1, "10% warm-up, then cosine to 0"),
        ("cosine", {"min_lr": 1e-6}, 0.0, "cosine to 1e-06"),
        ("poly", {"power": 2}, 0.0, "polynomial of power 2 to 0"),
        ("wsd", {}, 0.05, "5% warm-up, then constant, then down to 0 in the last 20% of the steps"),
        ("step", {}, 0.0, "times 0.1 after 50%, 75% of the steps"),
        ("plateau", {"patience": 2}, 0.0, "times 0.1 when val/acc1 has not improved in 3 validations"),
        ("constant", {}, 0.0, "constant"),
    ],
)
def test_the_schedule(schedule: str, given: dict[str, Any], warmup_share: float, text: str) -> None:
    arguments = schedule_arguments(schedule, given)
    assert schedule_line(schedule, arguments, warmup_share=warmup_share, monitor="val/acc1") == ("schedule", text)


def test_a_loss_that_is_not_the_usual_one() -> None:
    assert loss_lines("cross_entropy", 0.1, None, []) == []
    assert loss_lines("bce", 0.1, None, []) == [("loss", "binary cross-entropy of each class, label smoothing 0.1")]
    weights, names = torch.arange(6) / 3, [f"c{number}" for number in range(6)]
    text = "cross-entropy, label smoothing 0, class weights c0 0, c1 0.333, c2 0.667, c3 1, c4 1.33, …"
    assert loss_lines("cross_entropy", 0.0, weights, names) == [("loss", text)]


@pytest.mark.parametrize(
    ("mixing", "off", "text"),
    [
        (BatchMixing(), 0.0, None),
        (BatchMixing(erase_probability=0.25), 0.5, "random erasing of 25% of the images"),
        (
            BatchMixing(mixup=0.8, mix_probability=0.5),
            0.2,
            "mixup (alpha 0.8) of 50% of the batches, but not in the last 20% of the steps",
        ),
        (
            BatchMixing(mixup=0.8, cutmix=1.0, erase_probability=1.0),
            0.0,
            "random erasing of 100% of the images; mixup (alpha 0.8) or cutmix (alpha 1) of 100% of the batches",
        ),
    ],
)
def test_what_is_done_to_batches(mixing: BatchMixing, off: float, text: str | None) -> None:
    meaning = "; metrics of training go by the larger part" if mixing.mixes else ""
    assert mixing_lines(mixing, off) == ([] if text is None else [("batches", text + meaning)])


def test_position_embeddings_are_mentioned_where_they_change() -> None:
    assert resampling_lines(224, 224) == []
    assert resampling_lines(384, 224) == [("", "position embeddings of 224 × 224 images are resampled to 384 × 384")]
