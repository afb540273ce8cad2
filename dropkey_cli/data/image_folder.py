"""Images in class folders: the folder name is the class; missing splits are made here, reproducibly."""

import os
from contextlib import suppress
from typing import Any

from dropkey_cli.data.class_folders import (
    LAYOUT,
    check_classes,
    check_counts,
    class_images,
    find_classes,
    find_splits,
    holds_runs,
    list_samples,
)
from dropkey_cli.data.image_files import ImageFiles
from dropkey_cli.errors import InputError


class ImageFolder(ImageFiles):
    """Images in class folders: ROOT/train/CLASS/, ROOT/val/CLASS/ and ROOT/test/CLASS/, or just ROOT/CLASS/.

    A validation split that is not there is held out from the training images, class by class, always the same one.
    Size, mean, std, interpolation and crop are the model's own unless they are given.

    Args:
        root: Folder with the images, a table (.csv, .tsv, .jsonl, .parquet) of their paths and labels, or torch/cifar10,
            hfds/NAME, wds/FOLDER, tar/FOLDER, FILE.tar. In prediction: an image, a folder that is searched with its
            sub-folders, a pattern in quotes ('photos/*.jpg'), a table with a column path, a list (.txt), or - for a list on
            standard input.
    """

    def __init__(self, root: str | None = None, **options: Any) -> None:  # noqa: ANN401 - those of ImageFiles
        super().__init__(root=root, **options)

    def prepare_data(self) -> None:
        """Let one process per machine list the images, which takes minutes on some drives, for the others to read its list."""
        trainer = self.trainer
        if trainer is not None and trainer.state.fn != "predict" and trainer.world_size > 1:
            with suppress(InputError):  # which every process says in setup
                for folder in find_splits(self.root).values():
                    class_images(folder, channels=self.preprocessing.channels)

    def read_splits(self) -> None:
        """Find the images of every split; hold out those that have no folder."""
        folders = find_splits(self.root)
        if not self.class_names and "train" not in folders:
            raise InputError(f"{self.root!r} has no train/ that names the classes; {LAYOUT}; add train/")
        channels = self.preprocessing.channels
        class_names = self.class_names or find_classes(folders["train"])
        check_classes(folders, class_names)
        samples = {split: list_samples(folder, class_names, channels=channels) for split, folder in folders.items()}
        if "train" in samples:
            num_parts = 1 + len(self.shares_to_hold_out([*samples]))
            check_counts(samples["train"], folders["train"], class_names, minimum=num_parts)
        self.make_splits(samples, class_names, base=os.path.expanduser(str(self.root)))
        if "train" in folders and holds_runs(folders["train"]):
            note = "runs/ holds dropkey's runs: it is no class."
            self.split_note = f"{self.split_note} {note}" if self.split_note else note
