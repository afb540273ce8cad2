"""What an export is made of: a checkpoint's network, and all that its checkpoint and its run's folder know of it."""

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dropkey_cli.checkpoints import load_checkpoint
from dropkey_cli.data.preprocessing import Preprocessing
from dropkey_cli.errors import InputError
from dropkey_cli.models.factory import licence_and_source
from dropkey_cli.models.saved import load_network


@dataclass(frozen=True)
class Trained:
    """A trained network with what is known of it.

    Args:
        network: In evaluation mode, on the CPU, without DropKey.
        description: What its checkpoint says of itself.
        preprocessing: How images reach it.
        metrics: Those of the epoch that it is of; empty where they are not known.
        epoch: Number of epochs trained; None where it is not known.
        licence: That of the weights it was trained from; None from scratch or where it is not known.
        base: The model of the hub that it was trained from, or None.
    """

    network: nn.Module
    description: dict[str, Any]
    preprocessing: Preprocessing
    metrics: dict[str, float]
    epoch: int | None
    licence: str | None
    base: str | None

    @property
    def name(self) -> str:
        """The network's name in timm."""
        return str(self.description["model"]["name"])

    @property
    def class_names(self) -> list[str]:
        """Name of each class, in label order."""
        return list(self.description["class_names"])

    @property
    def pretrained(self) -> bool:
        """Whether the training began from pretrained weights."""
        return bool(self.description["config"]["model"].get("init_args", {}).get("pretrained"))

    @property
    def multi_label(self) -> bool:
        """Whether each class is a yes or no of its own."""
        return str(self.description["config"]["model"]["class_path"]).endswith(".MultiLabelClassification")

    @property
    def activation(self) -> str:
        """What makes probabilities of its logits: softmax, sigmoid, or with bce the sigmoids over their sum."""
        if self.multi_label:
            return "sigmoid"
        bce = self.description["config"]["model"].get("init_args", {}).get("loss") == "bce"
        return "sigmoid / sum(sigmoid)" if bce else "softmax"

    @property
    def is_ours(self) -> bool:
        """Whether timm has the network from dropkey_cli.models only."""
        return type(self.network).__module__.startswith("dropkey_cli.")


def read_trained(path: Path) -> Trained:
    """The network of a checkpoint.

    Args:
        path: The checkpoint; its run's folder is looked into for metrics.

    Raises:
        InputError: If it is no checkpoint of ours, or damaged.
    """
    network, description = load_network(path)
    checkpoint = load_checkpoint(path)
    options = description["config"]["model"].get("init_args", {})
    licence, base = (None, None)
    if options.get("pretrained"):
        licence, base = licence_and_source(description["model"]["name"], description["model"]["args"])
    try:
        preprocessing = Preprocessing(**{name: _plain(value) for name, value in description["preprocessing"].items()})
    except TypeError as error:
        raise InputError(f"{str(path)!r} is damaged, its preprocessing cannot be ({error}): give another one") from error
    epoch = checkpoint.get("epoch")
    return Trained(
        network=network,
        description=description,
        preprocessing=preprocessing,
        metrics=read_metrics(path, checkpoint),
        epoch=None if epoch is None else epoch + 1,
        licence=licence,
        base=base,
    )


def read_metrics(path: Path, checkpoint: dict[str, Any]) -> dict[str, float]:
    """The validation metrics of a checkpoint's step: those that its run logged, or else the one it was chosen by."""
    step, file = (checkpoint.get("global_step") or 0) - 1, path.parent.parent / "metrics.csv"
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as rows:
            for row in csv.DictReader(rows):
                found = {name: value for name, value in row.items() if name and name.startswith("val/") and value}
                if found and row.get("step") == str(step):
                    return {name: float(value) for name, value in found.items()}
    states = [state for name, state in (checkpoint.get("callbacks") or {}).items() if name.startswith("BestCheckpoint")]
    return {state["monitor"]: float(state["current_score"]) for state in states if state.get("current_score") is not None}


def preprocessing_json(trained: Trained) -> str:
    """How to feed the network and to read its output, for programs that have neither timm nor dropkey."""
    facts = asdict(trained.preprocessing)
    channels = trained.preprocessing.channels
    colours = {1: " grey,", 3: " RGB,", 4: " RGBA,"}.get(channels, "")
    facts["input"] = f"images: float32 (batch, {channels}, image_size, image_size),{colours} (pixel / 255 - mean) / std"
    facts["output"] = f"logits: float32 (batch, classes); {trained.activation} gives the probabilities"
    return json.dumps({**facts, "class_names": trained.class_names}, indent=2, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:  # noqa: ANN401 - a number, a text or a list of numbers
    return tuple(value) if isinstance(value, list) else value
