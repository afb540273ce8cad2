"""The folder that ``timm.create_model("local-dir:…", pretrained=True)`` loads, without dropkey."""

from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import Tensor

from dropkey_cli.export.comparing import Run
from dropkey_cli.export.trained import Trained
from dropkey_cli.models.factory import create_saved

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# What timm says of the weights that training began from, or of those that it would have loaded
_OF_OTHER_WEIGHTS = ("tag", "license", "description", "notes", "origin_url", "paper_name", "paper_ids", "label_names")


def write_timm(trained: Trained, _images: Tensor, folder: Path) -> Run:
    """Write ``model.safetensors`` and ``config.json``; gives the network that timm makes of them."""
    network: Any = trained.network
    known = {name: value for name, value in network.pretrained_cfg.items() if name not in _OF_OTHER_WEIGHTS}
    network.pretrained_cfg = {**known, **({"license": trained.licence} if trained.licence else {})}
    image = trained.preprocessing
    save_for_hf(
        network,
        str(folder),
        model_config={"label_names": trained.class_names},
        safe_serialization=True,
        data_config={
            "input_size": (len(image.mean), image.image_size, image.image_size),
            "mean": image.mean,
            "std": image.std,
            "interpolation": image.interpolation,
            "crop_pct": image.crop_pct,
            "crop_mode": image.crop_mode,
        },
    )
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets only the owner read
    loaded = create_saved(folder)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = loaded(images)
        return logits

    return run
