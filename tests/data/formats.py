"""The same pictures in every format that a data set comes in."""

import io
import json
import pickle
import struct
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def write_folder(root: Path, counts: Mapping[str, int] | None = None, *, size: int = 12) -> Path:
    """Class folders of noise pictures, SPLIT/CLASS/NNN.png, brighter from class to class."""
    generator = np.random.default_rng(0)
    for split, count in (counts or {"train": 8, "val": 5}).items():
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(60 * label, 60 * label + 90, (size, size + 2, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return root


def pictures(folder: Path) -> dict[str, list[tuple[str, int, bytes]]]:
    """Name, label and file content of the pictures of each split, in the order of the class folders."""
    found: dict[str, list[tuple[str, int, bytes]]] = defaultdict(list)
    for path in sorted(folder.rglob("*.png")):
        split, name, file = path.relative_to(folder).parts
        found[split].append((f"{name}/{file}", CLASSES.index(name), path.read_bytes()))
    return dict(found)


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], **options: Any) -> Path:  # noqa: ANN401 - those of tarfile
    """An archive of files in memory."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, source: Path, *, per_shard: int = 5) -> Path:
    """WebDataset shards SPLIT-NNNN.tar with NAME.png, NAME.cls and NAME.json, and classnames.txt."""
    folder.mkdir()
    for split, images in pictures(source).items():
        for shard in range(0, len(images), per_shard):
            files = []
            for number, (_, label, content) in enumerate(images[shard : shard + per_shard], shard):
                fields = json.dumps({"name": CLASSES[label], "number": label, "where": {"x": 1}}).encode()
                files += [(f"{number:06d}{kind}", data) for kind, data in zip(
                    (".cls", ".png", ".json"), (str(label).encode(), content, fields), strict=True
                )]  # fmt: skip
            write_tar(folder / f"{split}-{shard // per_shard:04d}.tar", files)
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    return folder


def hugging_face(source: Path) -> Any:  # noqa: ANN401 - a DatasetDict
    """The pictures as the datasets library holds them, with their file's content."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    tables = {
        split: datasets.Dataset.from_dict(
            {"image": [{"bytes": content, "path": None} for *_, content in images], "label": [label for _, label, _ in images]},
            features=features,
        )
        for split, images in pictures(source).items()
    }
    return datasets.DatasetDict({{"val": "validation"}.get(split, split): table for split, table in tables.items()})


def write_parquet(folder: Path, source: Path) -> Path:
    """The pictures as the Hub keeps them: parquet files in data/ and a README that names the classes."""
    for split, table in hugging_face(source).items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def write_streamable(folder: Path, source: Path, *, files: int = 3, counts: Mapping[str, int] | None = None) -> Path:
    """As `write_parquet`, in several files, with the README that says the number of images, or says another one."""
    import datasets
    from huggingface_hub import DatasetCardData

    (folder / "data").mkdir(parents=True)
    splits = datasets.SplitDict()
    for split, table in hugging_face(source).items():
        splits.add(datasets.SplitInfo(split, 1, (counts or {}).get(split, len(table))))
        for number in range(files):
            part = table.shard(files, number, contiguous=True)
            part.to_parquet(folder / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet")
    card = DatasetCardData()
    info = datasets.DatasetInfo(features=table.features, splits=splits)
    datasets.info.DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    return folder


def write_cifar10(root: Path, counts: Mapping[str, int]) -> dict[str, list[tuple[str, str]]]:
    """The layout of torchvision's CIFAR10; returns the checksums that torchvision compares, by the name of its list."""
    import hashlib

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)

    def write(name: str, content: Mapping[str, Any]) -> tuple[str, str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return name, hashlib.md5(data).hexdigest()

    def batch(count: int) -> dict[str, Any]:
        return {"data": generator.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": [n % 10 for n in range(count)]}

    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    return {
        "train_list": [write(f"data_batch_{number}", batch(counts["train"])) for number in range(1, 6)],
        "test_list": [write("test_batch", batch(counts["test"]))],
        "meta": [write("batches.meta", {"label_names": names})],
    }


def write_mnist(root: Path, name: str = "MNIST", counts: Mapping[str, int] | None = None) -> Path:
    """The files of torchvision's MNIST, whose checksums it does not compare once they are unpacked."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(2)
    for split, count in (counts or {"train": 40, "t10k": 20}).items():
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return root
