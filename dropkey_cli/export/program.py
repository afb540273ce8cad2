"""A torch.export program: runs wherever torch is, without timm and dropkey."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dropkey_cli.errors import RunError, first_line
from dropkey_cli.export.comparing import Run
from dropkey_cli.export.trained import Trained, preprocessing_json

FILE = "model.pt2"


def export_program(network: nn.Module, images: Tensor) -> Any:  # noqa: ANN401 - torch.export.ExportedProgram
    """The network as a program for any batch size.

    Raises:
        RunError: If torch cannot trace it.
    """
    try:
        return torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # each part of torch has its own kinds
        reason = first_line(error)[:200]
        raise RunError(
            f"torch.export cannot trace {type(network).__name__} for any batch size ({type(error).__name__}: {reason}): "
            "give --format timm"
        ) from error


def write_program(trained: Trained, images: Tensor, folder: Path) -> Run:
    """Write ``model.pt2``; gives what torch.export.load makes of it."""
    extra = {"preprocessing.json": preprocessing_json(trained)}
    torch.export.save(export_program(trained.network, images), folder / FILE, extra_files=extra)
    module = torch.export.load(folder / FILE).module()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = module(images)
        return logits

    return run
