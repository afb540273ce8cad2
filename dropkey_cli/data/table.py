"""Images listed in a table: CSV, TSV, JSONL or parquet with a path and a label, or several labels, in each row."""

from typing import Any

from dropkey_cli.data.class_folders import sorted_classes
from dropkey_cli.data.image_files import ImageFiles
from dropkey_cli.data.table_file import FORMATS
from dropkey_cli.data.table_rows import TableOptions, TableRows, read_tables
from dropkey_cli.errors import InputError


class ImageTable(ImageFiles):
    """Images listed in a table (CSV, TSV, parquet) or one object per line (JSONL): a path, a label, perhaps a split.

    Images are taken in the order of their paths: the same ones in a folder or in another table give the same run. Size, mean,
    std, interpolation and crop are the model's own unless they are given.

    Args:
        root: The table. It chooses this class by its name: *.csv, *.tsv, *.jsonl or *.parquet.
        val_root: A table of the validation images, if the root has none of them.
        test_root: A table of the test images, if the root has none of them.
        image_root: Folder that relative paths start from; by default the table's own.
        path_column: Column of the image files; by default the one that is called path, image, file, filename or the like.
        label_column: Column of the labels, names or whole numbers; by default the one that is called label, class, target or
            the like.
        split_column: Column that says train, val (valid, validation) or test; by default the one called split, if there is
            one. Without it, all rows are for training, and images for validation are held out of them.
        label_separator: What stands between the labels of an image that may have any number of them, e.g. | for cat|dog: then
            each class is learnt by itself (multi-label). Cells that are lists need none.
    """

    remedy = "mark rows with {} in a split column"

    def __init__(
        self,
        root: str | None = None,
        *,
        val_root: str | None = None,
        test_root: str | None = None,
        image_root: str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        label_separator: str | None = None,
        **options: Any,  # noqa: ANN401 - those of ImageFiles
    ) -> None:
        super().__init__(root=root, **options)
        self.val_root = val_root
        self.test_root = test_root
        self.table_options = TableOptions(image_root, path_column, label_column, split_column, label_separator)
        self.table_note = ""
        self._stage = "fit"

    def setup(self, stage: str) -> None:
        """Read the tables that a stage needs, and look whether the files are there."""
        self._stage = stage
        super().setup(stage)

    def plan_lines(self) -> list[tuple[str, str]]:
        """What a user should know before training, as (name, text)."""
        return [*super().plan_lines(), ("table", self.table_note)]

    def read_splits(self) -> None:
        """Read the tables; hold out the splits that have no rows."""
        rows = self._read_rows()
        self.multi_label = rows.is_multi
        class_names = self.class_names or sorted_classes(rows.names("train"))
        samples = rows.samples(class_names, look=self.on_error == "raise")
        self.table_note = rows.note
        if rows.num_repeated:
            self.table_note += f"; {rows.num_repeated} row(s) that repeat another are left out"
        self._check_classes(class_names)
        if self._stage == "test" and not ("test" in samples or self.test_fraction):
            self._split("test", "give a table of test images as --data.test_root FILE, or use dropkey validate")
        if "train" in samples and not self.multi_label:
            self.check_class_counts(samples, class_names)
        self.make_splits(samples, class_names, base=self.table_options.folder(self.root or ""))

    def _read_rows(self) -> TableRows:
        """The rows of the tables that the stage needs: evaluation does without the training rows where it can."""
        split = {"validate": "val", "test": "test"}.get(self._stage)
        files = {None: self.root, "val": self.val_root, "test": self.test_root}
        if self.class_names and files.get(split):
            files = {split: files[split]}
        elif not self.root:
            raise InputError(f"--data.root is not given; expected a table, {FORMATS}; give --data.root labels.csv")
        return read_tables({split: file for split, file in files.items() if file}, self.table_options)

    def _check_classes(self, class_names: list[str]) -> None:
        if len(class_names) < 2 or len(set(class_names)) < len(class_names):
            raise InputError(
                f"found {len(class_names)} class(es) ({', '.join(map(repr, class_names)) or 'none'}) in the training rows of "
                f"{self.root!r}; expected two or more different labels; check --data.label_column and the split column"
            )
