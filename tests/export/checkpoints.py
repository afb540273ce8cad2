"""Checkpoints of tiny untrained networks, as dropkey fit writes them."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dropkey_cli.models.factory import create_model

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_tiny_patch16_224", VIT, 40),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 64),
    "cait": ("cait_xxs24_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}, 48),
    "t2t_vit": ("t2t_vit_7", {"embed_dim": 32, "depth": 2, "num_heads": 2}, 64),
    "ceit": ("ceit_tiny_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}, 48),
}
CLASSES = ["Löwe", "猫", "sea lion", "zebra, small"]


def seeded_images(size: int, count: int = 8) -> torch.Tensor:
    """Images (count, 3, size, size) of different colours."""
    generator = torch.Generator().manual_seed(1)
    noise, colour = (torch.randn(count, 3, side, side, generator=generator) for side in (size, 1))
    return 2 * noise + 3 * colour


def seeded_network(name: str, args: dict[str, Any], size: int, num_classes: int = len(CLASSES)) -> nn.Module:
    """In evaluation mode, with logits that differ from image to image."""
    torch.manual_seed(0)
    network = create_model(name, num_classes=num_classes, image_size=size, pretrained=False, model_args=args)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5 / math.sqrt(parameter.shape[-1] if parameter.ndim else 1))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return network.eval()


def save(path: Path, which: str = "vit", *, root: str | None = None, **changes: Any) -> nn.Module:  # noqa: ANN401
    """Write a checkpoint; gives its network. ``changes`` replace parts of what it says of itself."""
    name, args, size = NETWORKS[which]
    network = seeded_network(name, args, size)
    task = "dropkey_cli.tasks.classification.Classification"
    data = {"class_path": "dropkey_cli.data.image_folder.ImageFolder", "init_args": {"root": root}}
    description = {
        "config": {
            "model": {"class_path": task, "init_args": {"model_name": name, "model_args": args, "pretrained": False}},
            "data": data,
        },
        "model": {"name": name, "args": args, "image_size": size},
        "class_names": CLASSES,
        "preprocessing": {
            "image_size": size, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear", "crop_pct": 0.8,
            "crop_mode": "center",
        },
        "dropkey": {"ratio": 0.3, "schedule": "decreasing", "include": []},
        "images": {"train": 90, "val": 10},
        "versions": {"dropkey": "0.1.0", "timm": "1.0.31"},
        **changes,
    }  # fmt: skip
    checkpoint = {
        "state_dict": {f"network.{key}": value for key, value in network.state_dict().items()},
        "callbacks": {"BestCheckpoint{}": {"monitor": "val/acc1", "current_score": torch.tensor(0.75)}},
        "epoch": 4,
        "global_step": 20,
        "pytorch-lightning_version": "2.6.6",
        "dropkey": description,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return network
