"""Data sets by name: torchvision's, Hugging Face's (copied or streamed), WebDataset shards and tar files."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from dropkey_cli.data.class_folders import nearest_first
from dropkey_cli.data.dataset import Example, Sample
from dropkey_cli.data.image_files import ImageFiles
from dropkey_cli.data.loading import process_of, run_seed
from dropkey_cli.data.named.hugging_face_sets import open_hugging_face
from dropkey_cli.data.named.hugging_face_streams import StreamedSet, open_stream
from dropkey_cli.data.named.named_set import NamedSet, Picked
from dropkey_cli.data.named.shards import open_shards
from dropkey_cli.data.named.tar_sets import open_tars
from dropkey_cli.data.named.torchvision_sets import open_torchvision
from dropkey_cli.data.streamed import StreamedImages, StreamSampler
from dropkey_cli.errors import InputError

_ROOTS = "expected torch/NAME, hfds/NAME, hfids/NAME, wds/FOLDER, tar/FOLDER or FILE.tar"


class NamedImages(ImageFiles):
    """Data sets by name: torch/cifar10, hfds/NAME, hfids/NAME, wds/FOLDER, tar/FOLDER or FILE.tar.

    torch/ is torchvision, hfds/ the Hugging Face Hub or a folder in one of its formats, wds/ a folder of WebDataset shards,
    tar/ a folder of tar files with class folders in them. Each image is reached by itself, so that order, augmentation,
    metrics and resuming are those of a folder. A validation split that is not there is held out from the training images.
    hfids/ is hfds/, and takes its options, without a copy on this machine: the images come one after the other, in every epoch
    from the start; each process that loads images reads them all and decodes its own. No split is held out.

    Args:
        root: The data set. A folder of such a name is read with ./ before it.
        data_dir: For torch/, the folder with torchvision's files, by default data; for hfds/, the cache of the datasets
            library, by default its own; for wds/ and tar/, what relative paths start from.
        download: Whether what is missing of torch/ and hfds/ is downloaded to data_dir.
        splits: The data set's own names of the splits, for wds/ and hfds/, e.g. {train: training, val: dev}; hfds/ also takes
            train[:1000]. By default train, val (valid, validation) and test, as far as there are such names.
        input_key: For hfds/, the column of the images, by default the only one; for wds/, the extensions, e.g. jpg;png.
        target_key: For hfds/, the column of the classes, by default label or the only one; for wds/, the field of .json.
        class_map: Text file with one class name per line, in label order. By default the data set's own order; where it has
            only numbers, line 1 names class 0.
        shuffle_buffer: For hfids/, how many images that follow each other are mixed in training; they lie in memory. Files are
            shuffled, too.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        data_dir: str | None = None,
        download: bool = False,
        splits: dict[str, str] | None = None,
        input_key: str | None = None,
        target_key: str | None = None,
        class_map: str | None = None,
        shuffle_buffer: int = 1000,
        **options: Any,  # noqa: ANN401 - those of ImageFiles
    ) -> None:
        super().__init__(root=root, **options)
        if shuffle_buffer < 1:
            raise InputError(f"shuffle_buffer is {shuffle_buffer!r}; expected 1 or more; give e.g. --data.shuffle_buffer 1000")
        if options.get("num_workers") is None and (root or "").lower().startswith("hfids/"):
            self.num_workers = min(1, self.num_workers)  # each reads all images
        self.data_dir = data_dir
        self.download = download
        self.source_splits = splits
        self.input_key = input_key
        self.target_key = target_key
        self.class_map = class_map
        self.shuffle_buffer = shuffle_buffer

    def prepare_data(self) -> None:
        """Let one process per machine download, or list what is slow to list, before the others look for it."""
        trainer = self.trainer
        if trainer is not None and trainer.state.fn != "predict" and (self.download or trainer.world_size > 1):
            with suppress(InputError):  # which every process says in setup
                self._open()

    def read_splits(self) -> None:
        """Open the data set; hold out the splits that it does not have."""
        found, mapped = self._open(), self._mapped_classes()
        names = mapped if mapped and _are_numbers(found.class_names) else found.class_names
        class_names = self.class_names or mapped or found.class_names
        if len(class_names) < 2 or len(set(class_names)) < len(class_names):
            raise InputError(
                f"{self.root!r} has {len(class_names)} class(es): {', '.join(map(repr, class_names[:5]))}; expected two or "
                "more, with different names; look at --data.target_key and --data.class_map"
            )
        if isinstance(found, StreamedSet):
            self._stream(found, names, class_names)
            return
        used = sorted({label for split in found.splits.values() for label in split.labels})
        labels = self._relabelled(used, names, class_names)
        samples = {
            split: [Sample(name, labels[label]) for name, label in zip(given.names, given.labels, strict=True)]
            for split, given in found.splits.items()
        }
        if "train" in samples:
            self.check_class_counts(samples, class_names)
        self.make_splits(samples, class_names, base="")
        for split, dataset in self.splits.items():
            source = found.splits[split if split in found.splits else "train"]
            places = {name: place for place, name in enumerate(source.names)}
            dataset.read = Picked(source.read, [places[dataset.paths[index]] for index in range(len(dataset))])

    def setup(self, stage: str) -> None:
        """Find the images; of a stream, none can be held out for validation."""
        super().setup(stage)
        if stage == "fit" and isinstance(self.splits.get("train"), StreamedImages):
            for split in self.shares_to_hold_out([*self.splits]):
                raise InputError(
                    f"{self.root!r} has no split for {split}; expected one, which a stream cannot hold out; give e.g. "
                    f'--data.splits \'{{train: "train[1000:]", {split}: "train[:1000]"}}\''
                )

    def train_dataloader(self) -> DataLoader[Example]:
        """The training images, shuffled anew in every epoch; a stream's as far as its buffer reaches."""
        dataset = self.splits.get("train")
        if not isinstance(dataset, StreamedImages):
            return super().train_dataloader()
        dataset.seed = run_seed(self.trainer)
        return self._loader(dataset, StreamSampler(dataset, seed=dataset.seed, **process_of(self.trainer)))

    def _stream(self, found: StreamedSet, names: list[str], class_names: list[str]) -> None:
        if self.repeats > 1:
            raise InputError(f"repeats is {self.repeats!r}; expected 1 for a stream; give --data.repeats 1, or hfds/")
        if self.max_train_images is not None:
            raise InputError(
                f"max_train_images is {self.max_train_images!r}; expected null for a stream, whose classes are not known "
                "before it is read; leave --data.max_train_images out, or give hfds/"
            )
        labels: dict[int | str, int] = {}
        for number, label in self._relabelled([*range(len(names))], names, class_names).items():
            labels[number] = labels[names[number]] = label
        self.class_names = class_names
        self.splits = {
            split: StreamedImages(like, found.splits[split], labels, shuffle_buffer=self.shuffle_buffer)
            for split, like in self.datasets({split: [] for split in found.splits}).items()
        }
        self.split_note = f"Streamed; training images are mixed within {self.shuffle_buffer}."

    def _open(self) -> NamedSet | StreamedSet:
        root = self.root
        kind, slash, name = (root or "").partition("/")
        kind = kind.lower()
        if root is None:
            raise InputError(f"--data.root is not given; {_ROOTS}; give --data.root NAME")
        if kind == "torch" and slash:
            return open_torchvision(root, name, data_dir=os.path.expanduser(self.data_dir or "data"), download=self.download)
        keys: dict[str, Any] = {"splits": self.source_splits, "input_key": self.input_key, "target_key": self.target_key}
        if kind == "hfds" and slash:
            return open_hugging_face(root, name, data_dir=self.data_dir, download=self.download, **keys)
        if kind == "hfids" and slash:
            return open_stream(root, name, data_dir=self.data_dir, **keys)
        folder = os.path.expanduser(self.data_dir or "")
        if kind == "wds" and slash:
            return open_shards(root, os.path.join(folder, os.path.expanduser(name)), **keys)
        if kind == "tar" and slash:
            return open_tars(root, os.path.join(folder, os.path.expanduser(name)))
        if root.lower().endswith(".tar"):
            return open_tars(root, os.path.join(folder, os.path.expanduser(root)))
        if kind == "tfds" and slash:
            raise InputError(f"{root!r} is a data set of TensorFlow, which is not read; {_ROOTS}; give --data.root hfds/{name}")
        raise InputError(f"--data.root {root!r} is no data set; {_ROOTS}; give one of them")

    def _mapped_classes(self) -> list[str]:
        if self.class_map is None:
            return []
        try:
            lines = Path(self.class_map).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"class_map {self.class_map!r} cannot be read ({error}); expected a text file with one class name per line; "
                "check the path"
            ) from error
        return [line.strip() for line in lines if line.strip()]

    def _relabelled(self, used: list[int], names: list[str], class_names: list[str]) -> dict[int, int]:
        """The label among the class names of each label of the data set, by name; by number where only those have names.

        Args:
            used: Those labels, sorted.
            names: Their names.
            class_names: The classes in label order.
        """
        labels = {name: label for label, name in enumerate(class_names)}
        named = {label: names[label] if label < len(names) else str(label) for label in used}
        unknown = [name for name in named.values() if name not in labels]
        if not unknown:
            return {label: labels[name] for label, name in named.items()}
        # Of numbers, such as 1 to 10 for 0 to 9, none can know whether they are names or places
        if _are_numbers(names) and used[-1] < len(class_names) and not all(name.isdecimal() for name in class_names):
            return {label: label for label in used}
        raise InputError(
            f"{self.root!r} has {len(unknown)} unknown class(es): {', '.join(map(repr, unknown[:5]))}; expected only the "
            f"{len(class_names)} known ones, nearest first: {nearest_first(unknown[0], class_names)}; mend --data.class_map, "
            "or test a checkpoint on a data set with its classes"
        )


def _are_numbers(names: list[str]) -> bool:
    """Whether names of classes are only their places, from 0."""
    return names == [str(label) for label in range(len(names))]
