"""An ONNX file: runs wherever there is an ONNX runtime."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dropkey_cli.errors import InputError, RunError, first_line
from dropkey_cli.export.comparing import Run
from dropkey_cli.export.program import export_program
from dropkey_cli.export.trained import Trained

FILE = "model.onnx"
LARGEST = 1_800_000_000  # bytes of weights in one file: protobuf ends at 2 GiB


def require_onnx() -> Any:  # noqa: ANN401 - the module onnxruntime
    """The package that runs ONNX files, where it and those that torch.onnx needs are there.

    Raises:
        InputError: If one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]  # ships no types
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"--format onnx needs {error.name}, which is not installed: pip install 'dropkey[onnx]'") from error
    return onnxruntime


def write_onnx(trained: Trained, images: Tensor, folder: Path) -> Run:
    """Write ``model.onnx`` with classes and preprocessing in its metadata; gives what onnxruntime makes of it."""
    onnxruntime = require_onnx()
    program = export_program(trained.network, images)
    try:
        # Not optimized: onnxscript 0.7.2 takes a constant of 1e-8 for 0 and leaves it out, as in T2T-ViT's division by a sum
        # plus 1e-8. onnxruntime optimizes by itself, and is as fast
        exported: Any = torch.onnx.export(
            program, input_names=["images"], output_names=["logits"], optimize=False, verbose=False
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise RunError(
            f"torch cannot write {trained.name} as ONNX ({type(error).__name__}: {first_line(error)[:200]}): give --format timm"
        ) from error
    exported.model.metadata_props.update(metadata(trained))
    weights = sum(tensor.nbytes for tensor in trained.network.state_dict().values())
    exported.save(folder / FILE, external_data=weights > LARGEST)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return run


def metadata(trained: Trained) -> dict[str, str]:
    """What the file says of itself, as JSON texts: ``class_names`` and how images reach the network."""
    image = trained.preprocessing
    facts = {
        "class_names": trained.class_names,
        "image_size": image.image_size,
        "mean": image.mean,
        "std": image.std,
        "interpolation": image.interpolation,
        "crop_pct": image.crop_pct,
        "crop_mode": image.crop_mode,
        "model_name": trained.name,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}
