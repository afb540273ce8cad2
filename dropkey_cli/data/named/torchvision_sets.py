"""Torchvision's classification data sets by name, as timm writes them: torch/cifar10."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dropkey_cli.data.named.named_set import NamedSet, NamedSplit, numbered
from dropkey_cli.data.reading import ImageFile
from dropkey_cli.errors import InputError, did_you_mean

_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_VAL = {"train": {"split": "train"}, "val": {"split": "val"}}
_ALL = {**_VAL, "test": {"split": "test"}}
_PETS = {"train": {"split": "trainval"}, "test": {"split": "test"}}
_COUNTRIES = {**_ALL, "val": {"split": "valid"}}
_PLACES = {"train": {"split": "train-standard"}, "val": {"split": "val"}}
_SPECIES = {"train": {"version": "2021_train"}, "val": {"version": "2021_valid"}}
_WHOLE: dict[str, dict[str, Any]] = {"train": {}}
SETS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "caltech101": ("Caltech101", _WHOLE),
    "caltech256": ("Caltech256", _WHOLE),
    "cifar10": ("CIFAR10", _FLAG),
    "cifar100": ("CIFAR100", _FLAG),
    "country211": ("Country211", _COUNTRIES),
    "dtd": ("DTD", _ALL),
    "eurosat": ("EuroSAT", _WHOLE),
    "fashion_mnist": ("FashionMNIST", _FLAG),
    "fgvc_aircraft": ("FGVCAircraft", _ALL),
    "flowers102": ("Flowers102", _ALL),
    "food101": ("Food101", _TEST),
    "gtsrb": ("GTSRB", _TEST),
    "imagenet": ("ImageNet", _VAL),
    "imagenette": ("Imagenette", _VAL),
    "inaturalist": ("INaturalist", _SPECIES),
    "kmnist": ("KMNIST", _FLAG),
    "mnist": ("MNIST", _FLAG),
    "oxford_iiit_pet": ("OxfordIIITPet", _PETS),
    "places365": ("Places365", _PLACES),
    "qmnist": ("QMNIST", _FLAG),
    "rendered_sst2": ("RenderedSST2", _ALL),
    "stanford_cars": ("StanfordCars", _TEST),
    "stl10": ("STL10", _TEST),
    "sun397": ("SUN397", _WHOLE),
    "svhn": ("SVHN", _TEST),
    "usps": ("USPS", _FLAG),
}
"""Torchvision's class of each name, and its arguments for each split."""
_LABELS = ("targets", "labels", "_labels", "y")
_PAIRS = ("samples", "_samples")
_HINT = re.compile(r"\.? You can (use|set) download=True.*")


def open_torchvision(root: str, name: str, *, data_dir: str, download: bool) -> NamedSet:
    """A data set of torchvision's.

    Args:
        root: What the user gave.
        name: One of `SETS`, with or without - and _.
        data_dir: The folder that torchvision calls its root.
        download: Whether what is missing is downloaded there.

    Raises:
        InputError: If there is no such name, or its files are not there.
    """
    plain = {known.replace("_", ""): known for known in SETS}
    known = plain.get(name.lower().replace("_", "").replace("-", ""))
    if name.lower() in ("image_folder", "folder"):
        raise InputError(f"{root!r} stands for class folders; expected the folder itself; give --data.root {data_dir}")
    if known is None:
        raise InputError(f"{root!r} is not in torchvision; expected one of {', '.join(SETS)}{did_you_mean(name, SETS)}")
    class_name, arguments = SETS[known]
    splits = {split: _open(root, class_name, {**chosen, "root": data_dir}, download) for split, chosen in arguments.items()}
    labels = {split: labels_of(dataset) for split, dataset in splits.items()}
    count = max(max(found) for found in labels.values()) + 1
    return NamedSet(
        _class_names(splits["train"], count),
        {
            split: NamedSplit(numbered(f"{known}/{split}", len(dataset)), labels[split], _Reader(dataset))
            for split, dataset in splits.items()
        },
    )


def _open(root: str, class_name: str, arguments: dict[str, Any], download: bool) -> Any:  # noqa: ANN401 - torchvision has no types
    from torchvision import datasets

    can_download = class_name != "ImageNet"
    if not download and not os.path.isdir(arguments["root"]):  # which some of torchvision's would make
        advice = "give --data.data_dir" + (", or --data.download true" if can_download else "")
        raise InputError(f"{root!r}: the folder {arguments['root']!r} does not exist; expected torchvision's files; {advice}")
    try:
        return getattr(datasets, class_name)(**arguments, **({"download": download} if can_download else {}))
    except (RuntimeError, OSError, ModuleNotFoundError) as error:
        reason = _HINT.sub("", " ".join(str(error).split()))
        advice = "give --data.data_dir, or --data.download true" if can_download else "give --data.data_dir"
        raise InputError(
            f"{root!r} is not complete in {arguments['root']!r} ({reason}); expected torchvision's {class_name} there; "
            f"{advice if not download else 'look at the reason, and into the folder'}"
        ) from error


def labels_of(dataset: Any) -> list[int]:  # noqa: ANN401 - torchvision has no types
    """The class index of every image, without decoding one if the data set keeps them anywhere."""
    for name in (*_LABELS, *_PAIRS):
        found = getattr(dataset, name, None)
        if found is None or len(found) != len(dataset):
            continue
        labels = [int(entry[1] if name in _PAIRS else entry) for entry in found]
        if all(labels[place] == int(dataset[place][1]) for place in {0, len(labels) // 2, len(labels) - 1}):
            return labels
    return [int(dataset[place][1]) for place in range(len(dataset))]


def _class_names(dataset: Any, count: int) -> list[str]:  # noqa: ANN401 - torchvision has no types
    for name in ("classes", "categories", "all_categories"):
        names = getattr(dataset, name, None)
        if names and len(names) >= count:
            found = [given if isinstance(given, str) else ", ".join(given) for given in names]
            if len(set(found)) == len(found):  # ImageNet has two cranes and two maillots, told apart by their synonyms
                return found
    return [str(label) for label in range(count)]


@dataclass(frozen=True)
class _Reader:
    """Gives the images of a torchvision data set."""

    dataset: Sequence[tuple[Any, Any]]

    def __call__(self, position: int) -> ImageFile:
        """The image at a position, as torchvision decodes it."""
        try:
            image: ImageFile = self.dataset[position][0]
        except Exception as error:  # Pillow's decoders raise SyntaxError, ValueError, struct.error … for damaged files
            raise OSError(f"{type(error).__name__}: {error}") from error
        return image
